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
    /// Words for the time before the device works, which stand before the others unless the user has given them. They
    /// may cost the guest an exit or more for each character and are left out where exits are dear.
    #[serde(default)]
    early: String,
    /// Beginnings of words with which the user has decided already.
    unless: Vec<String>,
    /// Texts that the kernel contains, all of them, if it has what the device needs built in.
    kernel_has: Vec<String>,
}

impl CmdlineRule {
    /// The rule for a device that works in kernels alone that contain these texts too.
    pub(crate) fn for_kernels_with(mut self, texts: &[&str]) -> Self {
        self.kernel_has.extend(texts.iter().map(|text| (*text).to_owned()));
        self
    }
}

/// The command line for a kernel, with or without the words for the time before the devices work.
pub(crate) fn complete(cmdline: &str, rules: &[CmdlineRule], kernel: &[u8], early: bool) -> String {
    let given = |begin: &str| cmdline.split_whitespace().any(|word| word.starts_with(begin));
    let applies = |rule: &&CmdlineRule| {
        !rule.unless.iter().any(|begin| given(begin))
            && rule.kernel_has.iter().all(|text| memmem::find(kernel, text.as_bytes()).is_some())
    };
    let early = |rule: &CmdlineRule| early && !given(&rule.early);
    let words =
        |rule: &'_ CmdlineRule| [if early(rule) { &rule.early } else { "" }, &rule.words].map(str::to_owned);
    let added = rules.iter().filter(applies).flat_map(words);
    let all: Vec<String> = added.chain([cmdline.to_owned()]).filter(|words| !words.is_empty()).collect();
    all.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> CmdlineRule {
        CmdlineRule {
            words: "console=fast".to_owned(),
            early: "soon".to_owned(),
            unless: vec!["console=".to_owned(), "quietly".to_owned()],
            kernel_has: vec!["fast driver".to_owned(), "its bus".to_owned()],
        }
    }

    #[test]
    fn words_are_added_for_a_kernel_that_has_everything_they_need() {
        let kernel = b"its bus\0some code\0fast driver\0";
        let complete = |cmdline, kernel| complete(cmdline, &[rule()], kernel, false);
        assert_eq!(complete("rw root=/dev/vda", kernel), "console=fast rw root=/dev/vda");
        assert_eq!(complete("", kernel), "console=fast");
        assert_eq!(complete("rw", b"its bus alone"), "rw");
    }

    #[test]
    fn early_words_are_added_once_where_they_are_wanted() {
        let kernel = b"its bus, fast driver";
        let complete = |cmdline| complete(cmdline, &[rule()], kernel, true);
        assert_eq!(complete("rw"), "soon console=fast rw");
        assert_eq!(complete("rw sooner"), "console=fast rw sooner");
        assert_eq!(complete("console=slow"), "console=slow");
    }

    #[test]
    fn a_device_can_want_more_of_the_kernel() {
        let rule = rule().for_kernels_with(&["its other bus"]);
        assert_eq!(complete("rw", std::slice::from_ref(&rule), b"its bus, fast driver", false), "rw");
        let kernel = b"its bus, fast driver, its other bus";
        assert_eq!(complete("rw", &[rule], kernel, false), "console=fast rw");
    }

    #[test]
    fn words_are_not_added_when_the_user_has_decided() {
        let kernel = b"its bus, fast driver";
        let complete = |cmdline| complete(cmdline, &[rule()], kernel, false);
        assert_eq!(complete("rw console=slow"), "rw console=slow");
        assert_eq!(complete("quietly"), "quietly");
        assert_eq!(complete("noconsole=1"), "console=fast noconsole=1");
    }

    #[test]
    fn without_rules_the_command_line_is_the_users() {
        assert_eq!(complete("rw  quiet", &[], b"", true), "rw  quiet");
        assert_eq!(complete("", &[], b"", true), "");
    }
}
