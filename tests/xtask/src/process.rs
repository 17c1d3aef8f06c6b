//! Child processes: run, capture, name in errors; and the progress lines a person follows.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Tells the person at the terminal what starts now.
pub(crate) fn progress(message: impl AsRef<str>) {
    eprintln!("==> {}", message.as_ref());
}

/// The command as a person would type it, for messages.
pub(crate) fn display(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| shell_quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// Quotes a word for a POSIX shell where that is needed.
pub(crate) fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+,./:@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs a command with the caller's output; anything but success is an error that names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", display(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", display(command));
    }
    Ok(())
}

/// Runs a command silently and returns its standard output; on failure the error carries what it said.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", display(command)))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({})\n{}", display(command), output.status, said.trim_end());
    }
    String::from_utf8(output.stdout).with_context(|| format!("output of `{}`", display(command)))
}

/// Looks a program up on `PATH` and in the system folders that ordinary users lack on theirs.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

/// A command for a program that set-up has installed.
pub(crate) fn program(name: &str) -> Command {
    Command::new(find_program(name).as_deref().map_or(OsStr::new(name), Path::as_os_str))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_only_what_a_shell_would_change() {
        assert_eq!(shell_quote("disk=svm_disk.img"), "disk=svm_disk.img");
        assert_eq!(shell_quote("root=/dev/vda rw"), "'root=/dev/vda rw'");
        assert_eq!(shell_quote("it's"), r"'it'\''s'");
        assert_eq!(shell_quote(""), "''");
    }

    #[test]
    fn a_failing_command_is_named_with_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("sh -c") && text.contains("broken") && text.contains('3'), "{text}");
    }

    #[test]
    fn a_missing_program_is_not_found() {
        assert_eq!(find_program("no-such-program-of-ours"), None);
        assert!(find_program("sh").is_some());
    }
}
