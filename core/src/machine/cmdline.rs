//! What default devices add to the kernel command line.
//!
//! Which console a guest should use depends on its kernel, so a profile can name words for kernels that can use a
//! device from the start. A user who says something of the kind has the last word.

use memchr::memmem;
use serde::Deserialize;

/// Words for the kernel command line, and when to add them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CmdlineRule {
    /// What is put in front of the command line.
    words: String,
    /// Beginnings of words with which the user has decided already.
    unless: Vec<String>,
    /// Texts that the kernel contains, all of them, if it has what the device needs built in.
    kernel_has: Vec<String>,
}

/// The command line for a kernel.
pub(crate) fn complete(cmdline: &str, rules: &[CmdlineRule], kernel: &[u8]) -> String {
    let applies = |rule: &&CmdlineRule| {
        let decided = |word: &str| rule.unless.iter().any(|begin| word.starts_with(begin.as_str()));
        !cmdline.split_whitespace().any(decided)
            && rule.kernel_has.iter().all(|text| memmem::find(kernel, text.as_bytes()).is_some())
    };
    let added = rules.iter().filter(applies).map(|rule| rule.words.as_str());
    let all: Vec<&str> = added.chain([cmdline]).filter(|words| !words.is_empty()).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> CmdlineRule {
        CmdlineRule {
            words: "console=fast".to_owned(),
            unless: vec!["console=".to_owned(), "quietly".to_owned()],
            kernel_has: vec!["fast driver".to_owned(), "its bus".to_owned()],
        }
    }

    #[test]
    fn words_are_added_for_a_kernel_that_has_everything_they_need() {
        let kernel = b"its bus\0some code\0fast driver\0";
        assert_eq!(complete("rw root=/dev/vda", &[rule()], kernel), "console=fast rw root=/dev/vda");
        assert_eq!(complete("", &[rule()], kernel), "console=fast");
        assert_eq!(complete("rw", &[rule()], b"its bus alone"), "rw");
    }

    #[test]
    fn words_are_not_added_when_the_user_has_decided() {
        let kernel = b"its bus, fast driver";
        assert_eq!(complete("rw console=slow", &[rule()], kernel), "rw console=slow");
        assert_eq!(complete("quietly", &[rule()], kernel), "quietly");
        assert_eq!(complete("noconsole=1", &[rule()], kernel), "console=fast noconsole=1");
    }

    #[test]
    fn without_rules_the_command_line_is_the_users() {
        assert_eq!(complete("rw  quiet", &[], b""), "rw  quiet");
        assert_eq!(complete("", &[], b""), "");
    }
}
