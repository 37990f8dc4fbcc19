//! `MODULE:FUNCTION` and `FILE.py:FUNCTION`.

use std::str::FromStr;

/// Where a function is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A module that can be imported by this name.
    Module(String),
    /// A file of Python code.
    File(String),
}

/// The function that a map runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it is.
    pub place: Place,
    /// Its name there, with dots for what is inside of a class.
    pub function: String,
}

impl FromStr for Target {
    type Err = String;

    /// The last colon separates, since a path may contain others.
    fn from_str(typed: &str) -> Result<Self, String> {
        let Some((place, function)) = typed.rsplit_once(':') else {
            return Err(format!(
                "it names no function; write {}:FUNCTION",
                if typed.is_empty() { "MODULE" } else { typed }
            ));
        };
        if place.is_empty() {
            return Err("nothing stands before the colon: write MODULE:FUNCTION or \
                        FILE.py:FUNCTION"
                .to_owned());
        }
        if function.is_empty() {
            return Err(format!(
                "no function stands behind the colon: write {place}:FUNCTION"
            ));
        }
        if function.contains('/') || function.ends_with(".py") {
            return Err(format!("it names no function; write {typed}:FUNCTION"));
        }
        if function.split('.').any(str::is_empty) {
            return Err(format!("{function} is no name of a function"));
        }
        Ok(Self {
            place: if place.ends_with(".py") || place.contains('/') {
                Place::File(place.to_owned())
            } else {
                Place::Module(place.to_owned())
            },
            function: function.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, Target};

    fn parsed(typed: &str) -> Target {
        typed.parse().expect("it is a target")
    }

    fn refused(typed: &str) -> String {
        typed.parse::<Target>().expect_err("it is no target")
    }

    #[test]
    fn a_module() {
        let target = parsed("package.module:function");
        assert_eq!(target.place, Place::Module("package.module".to_owned()));
        assert_eq!(target.function, "function");
    }

    #[test]
    fn a_file_is_told_by_its_suffix_or_a_slash() {
        for file in ["work.py", "./work.py", "a:b/work.py", "bin/work", "ü.py"] {
            assert_eq!(
                parsed(&format!("{file}:f")).place,
                Place::File(file.to_owned())
            );
        }
    }

    #[test]
    fn a_method() {
        assert_eq!(parsed("m:Class.method").function, "Class.method");
    }

    #[test]
    fn what_is_no_target_is_refused_with_what_to_write() {
        let cases = [
            ("module", "write module:FUNCTION"),
            ("work.py", "write work.py:FUNCTION"),
            ("a:b/work.py", "write a:b/work.py:FUNCTION"),
            ("module:", "write module:FUNCTION"),
            (":f", "write MODULE:FUNCTION"),
            ("", "write MODULE:FUNCTION"),
            ("module:a..b", "no name"),
        ];
        for (typed, part) in cases {
            let message = refused(typed);
            assert!(message.contains(part), "{typed:?}: {message}");
        }
    }
}
