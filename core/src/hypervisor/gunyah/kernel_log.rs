//! What the kernel logs while a call is refused.
//!
//! The drivers print the message that the Resource Manager rejected and its code, which is more than the error number
//! of the call can hold. On a busy phone the line is soon gone, so that it is taken down at once, where this process
//! may read the log.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The kernel's log as a device: one record a read (Documentation/ABI/testing/dev-kmsg).
const LOG: &str = "/dev/kmsg";
/// A record is never longer.
const RECORD_SIZE: usize = 8192;
/// Records looked at before giving up on a log that fills faster than it is read.
const MOST_RECORDS: usize = 10_000;
/// Lines kept, the latest.
const MOST_LINES: usize = 12;
/// Characters kept of a line.
const LONGEST_LINE: usize = 240;
/// Words that mark a line of the drivers.
const MARKS: [&str; 4] = ["gunyah", "gh_vm", "gh_r", "RM rejected"];

/// The kernel's log from a moment on.
#[derive(Debug)]
pub(crate) struct KernelLog(Option<File>);

impl KernelLog {
    /// The log from now on; empty if this process may not read it.
    pub(crate) fn from_now_on() -> Self {
        Self::at_end_of(Path::new(LOG))
    }

    fn at_end_of(path: &Path) -> Self {
        let open = || {
            let mut file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            file.seek(SeekFrom::End(0))?;
            std::io::Result::Ok(file)
        };
        Self(open().inspect_err(|error| tracing::debug!("cannot read the kernel log: {error}")).ok())
    }

    /// The drivers' lines since the log was opened or last asked.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let Some(file) = &mut self.0 else { return Vec::new() };
        let mut record = vec![0; RECORD_SIZE];
        let mut lines = Vec::new();
        for _ in 0..MOST_RECORDS {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(length) => lines.extend(line_of(&String::from_utf8_lossy(&record[..length]))),
                // EPIPE: records were overwritten before they were read; the next read goes on behind them.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        let surplus = lines.len().saturating_sub(MOST_LINES);
        lines.split_off(surplus)
    }
}

/// The text of a record such as `4,1234,567890,-;gh_rsc_mgr: text` if it is one of the drivers'.
fn line_of(record: &str) -> Option<String> {
    let text = record.split_once(';')?.1.lines().next()?;
    let ours = MARKS.iter().any(|mark| text.contains(mark));
    ours.then(|| text.chars().filter(|character| !character.is_control()).take(LONGEST_LINE).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn keeps_lines_of_the_drivers_alone() {
        let record =
            "4,1234,567890,-;gh_rsc_mgr hypervisor: RM rejected message 5600000b. Error: 2\n SUBSYSTEM=x\n";
        assert_eq!(
            line_of(record).as_deref(),
            Some("gh_rsc_mgr hypervisor: RM rejected message 5600000b. Error: 2")
        );
        assert_eq!(line_of("6,1,2,-;usb 1-1: new device"), None);
        assert_eq!(line_of("no record"), None);
    }

    #[test]
    fn cuts_long_lines_and_drops_control_characters() {
        let line = line_of(&format!("4,1,2,-;gunyah: \u{1b}[2J{}", "x".repeat(1000))).unwrap();
        assert_eq!(line.len(), LONGEST_LINE);
        assert!(line.starts_with("gunyah: [2Jx"));
    }

    #[test]
    fn starts_at_the_end_of_the_log() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "4,1,2,-;gunyah: old").unwrap();
        let mut log = KernelLog::at_end_of(file.path());
        assert!(log.lines().is_empty());
        writeln!(file, "4,2,3,-;gunyah: new").unwrap();
        assert_eq!(log.lines(), ["gunyah: new"]);
        assert!(log.lines().is_empty());
    }

    #[test]
    fn is_empty_where_the_log_cannot_be_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(KernelLog::at_end_of(&folder.path().join("kmsg")).lines().is_empty());
    }
}
