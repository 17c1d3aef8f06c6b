//! Options of a device: one definition gives parsing, defaults, help text and the schema in the descriptor.
//!
//! ```
//! use std::path::PathBuf;
//! use gvmm_plugin_api::options::{OptionKind, OptionSpec, PathAccess, Values};
//!
//! gvmm_plugin_api::options! {
//!     /// Options of an example.
//!     pub struct Options {
//!         /// File that holds the data.
//!         pub file: PathBuf = required("file", OptionKind::Path(PathAccess::Read)),
//!         /// How many to make.
//!         pub count: u16 = with_default("count", "1", OptionKind::Integer { min: 1, max: 16 }),
//!         /// Name shown to the guest.
//!         pub label: Option<String> = optional("label", OptionKind::Text),
//!     }
//! }
//!
//! let values = Values::check(Options::SPECS, [("file", "a.img"), ("count", "3")]).unwrap();
//! let options = Options::from_values(&values).unwrap();
//! assert_eq!((options.count, options.label), (3, None));
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;

/// One option, as part of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// The word before `=`.
    pub name: &'static str,
    /// What it does, for help texts.
    pub help: &'static str,
    /// What its value may be.
    pub kind: OptionKind,
    /// Whether it must be given.
    pub presence: Presence,
}

/// Whether an option must be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// It must be given.
    Required,
    /// It may be left out.
    Optional,
    /// It has this value when it is left out.
    Default(&'static str),
}

/// What the value of an option may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionKind {
    /// Any text without a comma.
    Text,
    /// A file; the sandbox opens it to the plugin as far as the access says.
    Path(PathAccess),
    /// A number, decimal or with `0x`.
    Integer {
        /// Smallest value.
        min: u64,
        /// Largest value.
        max: u64,
    },
    /// A number of bytes, with `K`, `M`, `G` or `T` for powers of 1024.
    Size {
        /// Smallest value in bytes.
        min: u64,
        /// Largest value in bytes.
        max: u64,
    },
    /// `on` or `off`; the name alone means `on`.
    Flag,
    /// A file descriptor that the process was started with.
    Fd,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// What a device does to a path among its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathAccess {
    /// Reads it.
    Read,
    /// Reads and writes it.
    ReadWrite,
    /// Makes it: the folder must be writable.
    Create,
    /// Connects to it as a Unix socket.
    Connect,
}

impl PathAccess {
    /// The word for it in the descriptor.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ReadWrite => "read-write",
            Self::Create => "create",
            Self::Connect => "connect",
        }
    }
}

impl OptionSpec {
    /// An option that must be given.
    pub const fn required(name: &'static str, kind: OptionKind) -> Self {
        Self { name, help: "", kind, presence: Presence::Required }
    }

    /// An option that may be left out.
    pub const fn optional(name: &'static str, kind: OptionKind) -> Self {
        Self { name, help: "", kind, presence: Presence::Optional }
    }

    /// An option with a value for when it is left out.
    pub const fn with_default(name: &'static str, value: &'static str, kind: OptionKind) -> Self {
        Self { name, help: "", kind, presence: Presence::Default(value) }
    }

    /// The same option with a help text.
    #[must_use]
    pub const fn help(mut self, help: &'static str) -> Self {
        self.help = help;
        self
    }
}

/// Why options were refused. The text names the option, what was given and what would do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// A name that the schema does not have.
    #[error("unknown option '{name}'{}", nearest_hint(.nearest, .known))]
    Unknown {
        /// As given.
        name: String,
        /// The most similar name of the schema, if any is similar.
        nearest: Option<String>,
        /// All names of the schema.
        known: Vec<String>,
    },
    /// A value that does not fit the type or range.
    #[error("option '{name}': '{value}' is not {expected}")]
    Value {
        /// Name of the option.
        name: String,
        /// As given.
        value: String,
        /// What would do.
        expected: String,
    },
    /// A required option is absent.
    #[error("option '{name}' is missing: add {name}={expected}")]
    Missing {
        /// Name of the option.
        name: String,
        /// What would do.
        expected: String,
    },
    /// Given twice.
    #[error("option '{0}' is given twice")]
    Twice(String),
}

fn nearest_hint(nearest: &Option<String>, known: &[String]) -> String {
    match nearest {
        Some(name) => format!("; did you mean '{name}'?"),
        None if known.is_empty() => "; this device takes no options".to_owned(),
        None => format!("; it takes {}", known.join(", ")),
    }
}

/// The word of `known` that is most like `word`, if one is like it at all.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (edit_distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 2.max(candidate.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in bytes; `a` is cut at 64 bytes, it may come from anywhere.
fn edit_distance(a: &str, b: &str) -> usize {
    let a = &a.as_bytes()[..a.len().min(64)];
    let b = b.as_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = row[j + 1];
            row[j + 1] = next;
        }
    }
    row[b.len()]
}

/// Parses a number of bytes such as `512`, `0x200`, `64K` or `2G`.
pub fn parse_size(text: &str) -> Option<u64> {
    let shift = match text.bytes().last()? {
        b'k' | b'K' => 10,
        b'm' | b'M' => 20,
        b'g' | b'G' => 30,
        b't' | b'T' => 40,
        _ => return parse_integer(text),
    };
    let digits = &text[..text.len() - 1];
    let number: u64 = digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())??;
    number.checked_mul(1 << shift)
}

/// Parses a decimal number, or a hexadecimal one with `0x`.
pub fn parse_integer(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    // from_str_radix would take a sign.
    digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| u64::from_str_radix(digits, radix).ok())?
}

/// The type of an option at run time; borrows from a [`OptionSpec`] or from a descriptor that was read from a file.
#[derive(Debug, Clone, Copy)]
pub enum KindRef<'a> {
    /// See [`OptionKind::Text`].
    Text,
    /// See [`OptionKind::Path`].
    Path,
    /// See [`OptionKind::Integer`].
    Integer(u64, u64),
    /// See [`OptionKind::Size`].
    Size(u64, u64),
    /// See [`OptionKind::Flag`].
    Flag,
    /// See [`OptionKind::Fd`].
    Fd,
    /// See [`OptionKind::Choice`].
    Choice(&'a [&'a str]),
}

impl KindRef<'_> {
    /// What a value of this type looks like, for messages: `a number from 1 to 16`.
    pub fn expected(&self) -> String {
        match self {
            Self::Text => "text".to_owned(),
            Self::Path => "PATH".to_owned(),
            Self::Integer(min, max) if *max == u64::MAX => format!("a number from {min}"),
            Self::Integer(min, max) => format!("a number from {min} to {max}"),
            Self::Size(min, max) if *max == u64::MAX => {
                format!("a size in bytes (K, M, G, T may follow) from {}", show_size(*min))
            }
            Self::Size(min, max) => {
                format!(
                    "a size in bytes (K, M, G, T may follow) from {} to {}",
                    show_size(*min),
                    show_size(*max)
                )
            }
            Self::Flag => "on or off".to_owned(),
            Self::Fd => "the number of an open file descriptor".to_owned(),
            Self::Choice(words) => format!("one of {}", words.join(", ")),
        }
    }

    /// Whether the text is a value of this type.
    pub fn accepts(&self, text: &str) -> bool {
        match self {
            Self::Text => !text.contains('\0'),
            Self::Path => !text.is_empty() && !text.contains('\0'),
            Self::Integer(min, max) => parse_integer(text).is_some_and(|n| (*min..=*max).contains(&n)),
            Self::Size(min, max) => parse_size(text).is_some_and(|n| (*min..=*max).contains(&n)),
            Self::Flag => matches!(text, "on" | "off"),
            Self::Fd => parse_integer(text).is_some_and(|n| i32::try_from(n).is_ok()),
            Self::Choice(words) => words.contains(&text),
        }
    }
}

/// A size in the largest unit that divides it.
pub fn show_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes > 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// An option of any schema, so that compiled-in and file-read descriptors are checked by the same code.
#[derive(Debug, Clone, Copy)]
pub struct SpecRef<'a> {
    /// Name.
    pub name: &'a str,
    /// Type.
    pub kind: KindRef<'a>,
    /// Whether it must be given.
    pub required: bool,
    /// The value when it is left out.
    pub default: Option<&'a str>,
}

impl OptionSpec {
    /// The borrowed form.
    pub fn as_ref(&self) -> SpecRef<'_> {
        let kind = match self.kind {
            OptionKind::Text => KindRef::Text,
            OptionKind::Path(_) => KindRef::Path,
            OptionKind::Integer { min, max } => KindRef::Integer(min, max),
            OptionKind::Size { min, max } => KindRef::Size(min, max),
            OptionKind::Flag => KindRef::Flag,
            OptionKind::Fd => KindRef::Fd,
            OptionKind::Choice(words) => KindRef::Choice(words),
        };
        let default = match self.presence {
            Presence::Default(value) => Some(value),
            Presence::Required | Presence::Optional => None,
        };
        SpecRef { name: self.name, kind, required: self.presence == Presence::Required, default }
    }
}

/// Option values that fit a schema, defaults filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

impl Values {
    /// Checks values against a compiled-in schema.
    pub fn check<'v>(
        specs: &[OptionSpec],
        given: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Result<Self, OptionError> {
        let specs: Vec<SpecRef<'_>> = specs.iter().map(OptionSpec::as_ref).collect();
        Self::check_refs(&specs, given)
    }

    /// Checks values against any schema.
    pub fn check_refs<'v>(
        specs: &[SpecRef<'_>],
        given: impl IntoIterator<Item = (&'v str, &'v str)>,
    ) -> Result<Self, OptionError> {
        let mut values = BTreeMap::new();
        for (name, value) in given {
            let Some(spec) = specs.iter().find(|spec| spec.name == name) else {
                return Err(OptionError::Unknown {
                    name: name.to_owned(),
                    nearest: nearest(name, specs.iter().map(|spec| spec.name)).map(str::to_owned),
                    known: specs.iter().map(|spec| spec.name.to_owned()).collect(),
                });
            };
            if !spec.kind.accepts(value) {
                let expected = spec.kind.expected();
                return Err(OptionError::Value { name: name.to_owned(), value: value.to_owned(), expected });
            }
            if values.insert(name.to_owned(), value.to_owned()).is_some() {
                return Err(OptionError::Twice(name.to_owned()));
            }
        }
        for spec in specs {
            if values.contains_key(spec.name) {
                continue;
            }
            if let Some(default) = spec.default {
                values.insert(spec.name.to_owned(), default.to_owned());
            } else if spec.required {
                let expected = spec.kind.expected();
                return Err(OptionError::Missing { name: spec.name.to_owned(), expected });
            }
        }
        Ok(Self(values))
    }

    /// The value of an option.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// All values in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of an option as a Rust type; the schema has already fixed what the text looks like.
    pub fn typed<T: FromOption>(&self, name: &'static str) -> Result<T, OptionError> {
        T::from_option(self.get(name)).ok_or_else(|| OptionError::Value {
            name: name.to_owned(),
            value: self.get(name).unwrap_or_default().to_owned(),
            expected: std::any::type_name::<T>().to_owned(),
        })
    }
}

/// Rust types that options can have.
pub trait FromOption: Sized {
    /// The value of the text; `None` when it does not fit.
    fn from_option(text: Option<&str>) -> Option<Self>;
}

impl FromOption for String {
    fn from_option(text: Option<&str>) -> Option<Self> {
        text.map(str::to_owned)
    }
}

impl FromOption for PathBuf {
    fn from_option(text: Option<&str>) -> Option<Self> {
        text.map(PathBuf::from)
    }
}

impl FromOption for bool {
    fn from_option(text: Option<&str>) -> Option<Self> {
        text.map(|text| text == "on")
    }
}

impl<T: FromOption> FromOption for Option<T> {
    fn from_option(text: Option<&str>) -> Option<Self> {
        match text {
            None => Some(None),
            Some(_) => T::from_option(text).map(Some),
        }
    }
}

macro_rules! numbers {
    ($($ty:ty),*) => {$(
        impl FromOption for $ty {
            fn from_option(text: Option<&str>) -> Option<Self> {
                parse_size(text?)?.try_into().ok()
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64, usize, i32);

/// Defines the options of a device as a struct; see the [module](mod@crate::options).
#[macro_export]
macro_rules! options {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $field_vis:vis $field:ident : $ty:ty = $make:ident ( $option:literal $(, $arg:expr)* $(,)? )
            ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone)]
        $vis struct $name {
            $( $(#[doc = $doc])* $field_vis $field: $ty, )*
        }

        impl $name {
            /// The schema.
            pub const SPECS: &'static [$crate::options::OptionSpec] = &[
                $( $crate::options::OptionSpec::$make($option $(, $arg)*).help(concat!($($doc, "\n"),*)) ),*
            ];
        }

        impl $crate::options::OptionSet for $name {
            const SPECS: &'static [$crate::options::OptionSpec] = $name::SPECS;

            fn from_values(
                values: &$crate::options::Values,
            ) -> ::core::result::Result<Self, $crate::options::OptionError> {
                let _ = values;
                Ok(Self { $( $field: values.typed::<$ty>($option)?, )* })
            }
        }

        impl $name {
            /// The options as typed values; the values must fit the schema.
            pub fn from_values(
                values: &$crate::options::Values,
            ) -> ::core::result::Result<Self, $crate::options::OptionError> {
                <Self as $crate::options::OptionSet>::from_values(values)
            }
        }
    };
}

/// A struct of options with its schema. Implemented by [`options!`](crate::options!).
pub trait OptionSet: Sized {
    /// The schema.
    const SPECS: &'static [OptionSpec];

    /// The options as typed values.
    fn from_values(values: &Values) -> Result<Self, OptionError>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[OptionSpec] = &[
        OptionSpec::required("disk", OptionKind::Path(PathAccess::ReadWrite)),
        OptionSpec::with_default("readonly", "off", OptionKind::Flag),
        OptionSpec::optional("queue-size", OptionKind::Integer { min: 2, max: 32768 }),
        OptionSpec::optional("cache", OptionKind::Size { min: 0, max: 1 << 30 }),
        OptionSpec::optional("mode", OptionKind::Choice(&["fast", "safe"])),
    ];

    fn refusal(given: &[(&str, &str)]) -> String {
        Values::check(SPECS, given.iter().copied()).unwrap_err().to_string()
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        assert_eq!(refusal(&[("dsk", "a")]), "unknown option 'dsk'; did you mean 'disk'?");
        assert_eq!(
            refusal(&[("zzzzzzzz", "a")]),
            "unknown option 'zzzzzzzz'; it takes disk, readonly, queue-size, cache, mode"
        );
    }

    #[test]
    fn wrong_values_say_what_would_do() {
        assert_eq!(
            refusal(&[("queue-size", "1")]),
            "option 'queue-size': '1' is not a number from 2 to 32768"
        );
        assert_eq!(
            refusal(&[("queue-size", "+4")]),
            "option 'queue-size': '+4' is not a number from 2 to 32768"
        );
        assert_eq!(refusal(&[("readonly", "yes")]), "option 'readonly': 'yes' is not on or off");
        assert_eq!(refusal(&[("mode", "x")]), "option 'mode': 'x' is not one of fast, safe");
        assert_eq!(
            refusal(&[("cache", "2G")]),
            "option 'cache': '2G' is not a size in bytes (K, M, G, T may follow) from 0 to 1G"
        );
    }

    #[test]
    fn missing_and_repeated_options_are_refused() {
        assert_eq!(refusal(&[]), "option 'disk' is missing: add disk=PATH");
        assert_eq!(refusal(&[("disk", "a"), ("disk", "b")]), "option 'disk' is given twice");
    }

    #[test]
    fn defaults_fill_what_is_left_out() {
        let values = Values::check(SPECS, [("disk", "a.img")]).unwrap();
        assert!(!values.typed::<bool>("readonly").unwrap());
        assert_eq!(values.typed::<Option<u16>>("queue-size").unwrap(), None);
    }

    #[test]
    fn sizes_are_powers_of_1024_and_never_wrap() {
        assert_eq!(parse_size("64K"), Some(65536));
        assert_eq!(parse_size("0x200"), Some(512));
        assert_eq!(parse_size("16777216T"), None);
        assert_eq!(parse_size(""), None);
        assert_eq!(parse_size("K"), None);
        assert_eq!(parse_size("-1"), None);
    }
}
