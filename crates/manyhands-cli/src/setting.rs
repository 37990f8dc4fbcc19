//! `KEY=VALUE`.

use std::str::FromStr;

/// One setting for `manyhands.configure`; which keys exist is known there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its name.
    pub key: String,
    /// Its value as it was typed.
    pub value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(typed: &str) -> Result<Self, String> {
        match typed.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self {
                key: key.to_owned(),
                value: value.to_owned(),
            }),
            _ => Err("a setting is written KEY=VALUE, as in workers=4".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Setting;

    #[test]
    fn the_first_sign_separates() {
        let setting: Setting = "key=a=b".parse().expect("it is a setting");
        assert_eq!(
            (setting.key.as_str(), setting.value.as_str()),
            ("key", "a=b")
        );
        let empty: Setting = "key=".parse().expect("it is a setting");
        assert_eq!(empty.value, "");
    }

    #[test]
    fn a_setting_has_a_key_and_a_sign() {
        for typed in ["", "key", "=value"] {
            assert!(typed.parse::<Setting>().is_err(), "{typed:?}");
        }
    }
}
