//! Options that make no sense. gvmm checks options before a plugin sees them; other hosts may not.

use std::sync::Arc;

use gvmm_plugin_api::host::manifest::{ManifestKind, ManifestOption};

use super::bench::Recorder;
use super::report::Verdict;
use super::subject::Subject;

/// An option that no plugin has.
const UNKNOWN: &str = "no-such-option";

pub(super) fn options(subject: &Subject) -> Result<Verdict, String> {
    let good: Vec<(&str, &str)> = subject.values().iter().collect();
    refused(subject, &[&good[..], &[(UNKNOWN, "on")]].concat(), UNKNOWN)?;
    for option in &subject.library.manifest().options {
        let name = option.name.as_str();
        let others: Vec<_> = good.iter().filter(|(other, _)| *other != name).copied().collect();
        for value in junk(option) {
            refused(subject, &[&others[..], &[(name, value.as_str())]].concat(), name)?;
        }
        if option.required {
            refused(subject, &others, name)?;
        }
    }
    if let Some(first) = good.first() {
        refused(subject, &[&good[..], &[*first]].concat(), first.0)?;
    }
    Ok(Verdict::Pass)
}

/// Checks that the plugin refuses the options and names the one that is wrong.
fn refused(subject: &Subject, options: &[(&str, &str)], wrong: &str) -> Result<(), String> {
    let host = Arc::new(Recorder::default());
    let given = || {
        let pairs: Vec<_> = options.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        pairs.join(",")
    };
    match subject.library.create_unchecked(options.iter().copied(), host) {
        Ok(_) => Err(format!("option '{wrong}': a device was made of {}", given())),
        Err(error) if error.to_string().contains("panicked") => {
            Err(format!("option '{wrong}': {error}, given {}", given()))
        }
        Err(error) if !error.to_string().contains(wrong) => {
            Err(format!("option '{wrong}' is refused without being named: {error}"))
        }
        Err(_) => Ok(()),
    }
}

/// Values that do not fit the option.
fn junk(option: &ManifestOption) -> Vec<String> {
    let number = |min: &u64, max: &u64| {
        let mut values =
            vec!["".to_owned(), "x".to_owned(), "-1".to_owned(), "99999999999999999999".to_owned()];
        values.extend(min.checked_sub(1).map(|n| n.to_string()));
        values.extend(max.checked_add(1).map(|n| n.to_string()));
        values
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match &option.kind {
        ManifestKind::Integer { min, max } | ManifestKind::Size { min, max } => number(min, max),
        ManifestKind::Flag => words(&["", "maybe", "1"]),
        ManifestKind::Fd => words(&["", "x", "-5", "4294967296"]),
        ManifestKind::Choice { .. } => words(&["", "no-such-word"]),
        ManifestKind::Path { .. } => words(&["", "a\0b"]),
        ManifestKind::Text => words(&["a\0b"]),
    }
}
