//! From what was typed to what it means.

use crate::command::{Command, Demo, Format, Input, Map, Records};
use crate::typed::{Arguments, MapArguments, Typed};
use clap::{CommandFactory, Parser};
use clap_complete::Shell;
use std::ffi::OsString;

/// What a command line asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Parsed {
    /// A command that somebody has to run.
    Run(Command),
    /// A text, and nothing else: help, the version, completions.
    Say(String),
    /// A message, since what was typed means nothing.
    Refuse(String),
}

/// Parses the arguments behind the program's name.
#[must_use]
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Parsed {
    let program = OsString::from("manyhands");
    match Arguments::try_parse_from(std::iter::once(program).chain(arguments)) {
        Ok(Arguments { command }) => match command {
            Typed::Map(map) => Parsed::Run(Command::Map(meaning(*map))),
            Typed::Demo(demo) => Parsed::Run(Command::Demo(Demo {
                seconds: demo.seconds,
                limit: demo.limit,
                workers: demo.workers,
            })),
            Typed::Doctor(doctor) => Parsed::Run(Command::Doctor { json: doctor.json }),
            Typed::Completions { shell } => Parsed::Say(completions(shell)),
        },
        Err(message) if message.use_stderr() => Parsed::Refuse(message.to_string()),
        Err(text) => Parsed::Say(text.to_string()),
    }
}

fn meaning(typed: MapArguments) -> Map {
    let records = [
        (Format::Lines, typed.lines),
        (Format::JsonLines, typed.jsonl),
        (Format::Csv, typed.csv),
    ]
    .into_iter()
    .find_map(|(format, file)| file.map(|file| Records { format, file }));
    Map {
        target: typed.target,
        // The group of these options lets exactly one of them through.
        input: records.map_or(Input::Paths(typed.paths), Input::Records),
        keywords: typed.kwargs,
        output: typed.output,
        pickle: typed.pickle,
        workers: typed.workers,
        engine: typed.engine.map(Into::into),
        unordered: typed.unordered,
        on_error: typed.on_error.into(),
        batch: typed.batch,
        progress: match (typed.progress, typed.no_progress) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            (false, false) => None,
        },
        settings: typed.settings,
    }
}

fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Arguments::command(), "manyhands", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use super::{Parsed, parse};
    use crate::command::{Command, Engine, Format, Input, Map, OnError, Records};
    use crate::typed::Arguments;
    use crate::{Place, Setting};
    use clap::CommandFactory;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    fn parsed(typed: &str) -> Parsed {
        parse(typed.split_whitespace().map(OsString::from))
    }

    fn map(typed: &str) -> Map {
        match parsed(&format!("map {typed}")) {
            Parsed::Run(Command::Map(map)) => map,
            other => panic!("{typed}: {other:?}"),
        }
    }

    fn refused(typed: &str) -> String {
        match parsed(typed) {
            Parsed::Refuse(message) => message,
            other => panic!("{typed}: {other:?}"),
        }
    }

    fn said(typed: &str) -> String {
        match parsed(typed) {
            Parsed::Say(text) => text,
            other => panic!("{typed}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn paths_and_what_is_left_to_the_library() {
        let map = map("work.py:parse a.csv b.csv");
        assert_eq!(map.target.place, Place::File("work.py".to_owned()));
        assert_eq!(
            map.input,
            Input::Paths(vec!["a.csv".into(), "b.csv".into()])
        );
        assert_eq!(map.output, "-");
        assert_eq!((map.workers, map.engine, map.batch), (None, None, None));
        assert_eq!((map.progress, map.on_error), (None, OnError::Return));
        assert!(!map.unordered && !map.keywords && !map.pickle && map.settings.is_empty());
    }

    #[test]
    fn options_may_stand_between_and_behind_paths() {
        let map = map("m:f a -j 8 b --engine thread --unordered -- -c");
        assert_eq!(
            map.input,
            Input::Paths(vec!["a".into(), "b".into(), "-c".into()])
        );
        assert_eq!((map.workers, map.engine), (Some(8), Some(Engine::Thread)));
        assert!(map.unordered);
    }

    #[test]
    fn a_path_need_not_be_text() {
        let path = OsString::from_vec(b"\xff.csv".to_vec());
        let typed = ["map".into(), "m:f".into(), path.clone()];
        let Parsed::Run(Command::Map(map)) = parse(typed) else {
            panic!("it was refused");
        };
        assert_eq!(map.input, Input::Paths(vec![path]));
    }

    #[test]
    fn records() {
        let cases = [
            ("--lines", Format::Lines),
            ("--jsonl", Format::JsonLines),
            ("--csv", Format::Csv),
        ];
        for (option, format) in cases {
            let file = OsString::from("-");
            assert_eq!(
                map(&format!("m:f {option} -")).input,
                Input::Records(Records { format, file })
            );
        }
        assert!(map("m:f --jsonl x --kwargs").keywords);
    }

    #[test]
    fn the_last_word_on_progress_counts() {
        assert_eq!(map("m:f a --progress").progress, Some(true));
        assert_eq!(map("m:f a --progress --no-progress").progress, Some(false));
        assert_eq!(map("m:f a --no-progress --progress").progress, Some(true));
    }

    #[test]
    fn settings_are_repeated() {
        let setting = |key: &str, value: &str| Setting {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        assert_eq!(
            map("m:f a --config workers=2 --config show_args=false").settings,
            [setting("workers", "2"), setting("show_args", "false")]
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let cases = [
            ("", "Usage:"),
            ("maap m:f a", "similar subcommand"),
            ("map m:f", "required"),
            ("map m:f a --lines b", "cannot be used with"),
            ("map m:f --lines a --csv b", "cannot be used with"),
            ("map m:f a --kwargs", "cannot be used with"),
            ("map m:f --lines a --kwargs", "cannot be used with"),
            (
                "map m:f --jsonl a --kwargs --batch 3",
                "cannot be used with",
            ),
            ("map m:f a -j 0", "0 is not in 1.."),
            ("map m:f a --batch many", "invalid digit"),
            ("map m:f a --engine proces", "process"),
            ("map m:f a --on-error stop", "return, skip, raise"),
            ("map m:f a --config workers", "KEY=VALUE"),
            ("map m a", "write m:FUNCTION"),
            ("map m:f a --unorderd", "--unordered"),
            ("demo --seconds 0", "above 0"),
            ("demo --seconds nan", "above 0"),
            ("completions tcsh", "bash"),
        ];
        for (typed, part) in cases {
            let message = refused(typed);
            assert!(message.contains(part), "{typed}: {message}");
        }
    }

    #[test]
    fn help_teaches_and_fits_a_terminal() {
        let help = said("map --help");
        for part in [
            "work.py:parse",
            "--jsonl",
            "Exit codes",
            "FILE.partial",
            "130",
        ] {
            assert!(help.contains(part), "{part}");
        }
        for text in [help, said("--help"), said("demo --help"), said("doctor -h")] {
            for line in text.lines() {
                assert!(line.chars().count() <= 98, "{line}");
            }
        }
    }

    #[test]
    fn the_version() {
        assert_eq!(
            said("--version"),
            format!("manyhands {}\n", env!("CARGO_PKG_VERSION"))
        );
    }

    #[test]
    fn completions_know_the_options() {
        for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
            let script = said(&format!("completions {shell}"));
            for part in ["manyhands", "unordered", "on-error", "doctor"] {
                assert!(script.contains(part), "{shell}: {part}");
            }
        }
    }
}
