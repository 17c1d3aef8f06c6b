//! What a console is attached to, as users write it.

use std::path::PathBuf;

use gvmm_plugin_api::options::nearest;

/// Between a target and its log copy.
const LOG: &str = "+log:";

/// An attachment: a [`Target`], which `+log:PATH` may follow.
///
/// | written | is |
/// |---|---|
/// | `stdio` | the terminal gvmm runs in, or whatever standard input and output are |
/// | `pty` | a new pseudo-terminal, whose path is shown and logged |
/// | `pty:LINK` | the same with a symbolic link to it |
/// | `socket:PATH` | a Unix socket: the first client types, all look on, late ones get the last 256 KiB |
/// | `file:PATH` | output is appended to a file, there is no input |
/// | `null` | output is dropped, there is no input |
/// | `...+log:PATH` | any of these with a copy of the output, appended to a file |
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The far end.
    pub target: Target,
    /// File that gets a copy of what is shown; appended to.
    pub log: Option<PathBuf>,
}

/// The far end of a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Standard input and output, shared by all devices that ask for it.
    Stdio,
    /// A new pseudo-terminal, with a symbolic link to it if one is asked for.
    Pty(Option<PathBuf>),
    /// A Unix socket that clients connect to, shared by all devices that ask for it.
    Socket(PathBuf),
    /// A file that is appended to.
    File(PathBuf),
    /// Nothing is shown, nobody types.
    Null,
}

/// Why an attachment was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachmentError {
    /// The word before the colon is none of ours.
    #[error("there is no console '{word}'; {}", hint(.nearest))]
    Unknown {
        /// As given.
        word: String,
        /// The most similar one, if any is similar.
        nearest: Option<&'static str>,
    },
    /// A path is missing.
    #[error("console '{0}' needs a path: {0}:PATH")]
    NoPath(&'static str),
    /// A path where none belongs.
    #[error("console '{word}' takes no path, but has '{path}'")]
    StrayPath {
        /// The word before the colon.
        word: &'static str,
        /// What follows it.
        path: String,
    },
    /// `+log:` with nothing behind it.
    #[error("the log copy of a console needs a file: +log:PATH")]
    NoLogPath,
}

/// All words, in the order in which messages list them.
const WORDS: [&str; 5] = ["stdio", "pty", "socket", "file", "null"];

fn hint(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(word) => format!("did you mean '{word}'?"),
        None => format!("there are {}", WORDS.join(", ")),
    }
}

impl std::str::FromStr for Attachment {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (target, log) = match text.rsplit_once(LOG) {
            Some((_, "")) => return Err(AttachmentError::NoLogPath),
            Some((target, log)) => (target, Some(PathBuf::from(log))),
            None => (text, None),
        };
        Ok(Self { target: target.parse()?, log })
    }
}

impl std::str::FromStr for Target {
    type Err = AttachmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (word, path) = text.split_once(':').map_or((text, None), |(word, path)| (word, Some(path)));
        let without = |word: &'static str, target: Self| match path {
            None => Ok(target),
            Some(path) => Err(AttachmentError::StrayPath { word, path: path.to_owned() }),
        };
        let with = |word: &'static str| match path {
            None | Some("") => Err(AttachmentError::NoPath(word)),
            Some(path) => Ok(PathBuf::from(path)),
        };
        match word {
            "pty" => Ok(Self::Pty(path.map(|_| with("pty")).transpose()?)),
            "socket" => with("socket").map(Self::Socket),
            "file" => with("file").map(Self::File),
            "stdio" => without("stdio", Self::Stdio),
            "null" => without("null", Self::Null),
            _ => Err(AttachmentError::Unknown { word: word.to_owned(), nearest: nearest(word, WORDS) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        text.parse::<Attachment>().unwrap_err().to_string()
    }

    #[test]
    fn reads_targets_with_and_without_a_log_copy() {
        assert_eq!("stdio".parse(), Ok(Attachment { target: Target::Stdio, log: None }));
        assert_eq!("pty".parse(), Ok(Target::Pty(None)));
        assert_eq!("pty:/run/vm".parse(), Ok(Target::Pty(Some("/run/vm".into()))));
        assert_eq!("socket:/run/vm:1".parse(), Ok(Target::Socket("/run/vm:1".into())));
        assert_eq!("file:a+b".parse(), Ok(Target::File("a+b".into())));
        let log = Some(PathBuf::from("/tmp/a:b"));
        assert_eq!("null+log:/tmp/a:b".parse(), Ok(Attachment { target: Target::Null, log }));
    }

    #[test]
    fn names_the_nearest_word_or_all_of_them() {
        assert_eq!(refusal("stdoi"), "there is no console 'stdoi'; did you mean 'stdio'?");
        let all = "there are stdio, pty, socket, file, null";
        assert_eq!(refusal("telephone"), format!("there is no console 'telephone'; {all}"));
        assert_eq!(refusal(""), format!("there is no console ''; {all}"));
    }

    #[test]
    fn says_where_a_path_is_missing_or_out_of_place() {
        assert_eq!(refusal("stdio:/dev/tty"), "console 'stdio' takes no path, but has '/dev/tty'");
        assert_eq!(refusal("socket"), "console 'socket' needs a path: socket:PATH");
        assert_eq!(refusal("file:+log:a"), "console 'file' needs a path: file:PATH");
        assert_eq!(refusal("pty:"), "console 'pty' needs a path: pty:PATH");
        assert_eq!(refusal("stdio+log:"), "the log copy of a console needs a file: +log:PATH");
    }
}
