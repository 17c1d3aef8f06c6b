//! User-mode networking by the program `passt`, which takes its end of a socket pair.
//!
//! passt goes into the background when it is ready and ends when the socket is closed, so there is nothing to kill: the
//! end of gvmm, however sudden, is the end of passt.
#![forbid(unsafe_code)]

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::redial::Dial;
use crate::Options;

/// Largest packet that passt takes, in bytes.
pub(crate) const MTU: u16 = 65520;
/// Bytes of passt's complaint that are shown at most.
const COMPLAINT: usize = 500;

/// One start at a time: a program that is started meanwhile would inherit the other's socket and keep it open.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts `passt`.
pub(crate) struct Passt {
    arguments: Vec<String>,
}

impl Passt {
    /// With the options' port forwards and MTU.
    pub(crate) fn new(options: &Options) -> Self {
        let mut arguments = vec!["--quiet".to_owned()];
        let mtu = options.mtu.unwrap_or(MTU);
        arguments.extend(["--mtu".to_owned(), mtu.to_string()]);
        for (option, ports) in [("--tcp-ports", &options.tcp), ("--udp-ports", &options.udp)] {
            if let Some(ports) = ports {
                // A comma ends an option of gvmm.
                arguments.extend([option.to_owned(), ports.replace('+', ",")]);
            }
        }
        Self { arguments }
    }

    fn start(&self, program: &str) -> Result<OwnedFd, String> {
        let pair = UnixStream::pair().map_err(|error| format!("user: cannot make a socket pair: {error}"));
        let (ours, theirs) = pair?;
        let _lock = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|error| format!("user: cannot pass on a socket: {}", error.desc()))?;
        let mut command = Command::new(program);
        command.args(["--fd", &theirs.as_raw_fd().to_string()]).args(&self.arguments).stdin(Stdio::null());
        let output = command.output();
        drop(theirs);
        let output = output.map_err(|error| match error.kind() {
            ErrorKind::NotFound => format!(
                "user: the program {program} is missing: install the package passt (apt install passt), \
                 or use tap=NAME or socket=PATH"
            ),
            _ => format!("user: cannot start {program}: {error}"),
        })?;
        if !output.status.success() {
            let complaint = complaint(&output.stderr);
            return Err(format!(
                "user: `{program} {}` failed ({}): {complaint}",
                self.arguments.join(" "),
                output.status
            ));
        }
        Ok(ours.into())
    }
}

impl Dial for Passt {
    fn dial(&mut self) -> Result<OwnedFd, String> {
        self.start("passt")
    }
}

/// The last line of what passt says that is about the matter, and not about a missing syslog.
fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let mut lines = text.lines().map(str::trim).rev();
    let line = lines.find(|line| !line.is_empty() && !line.starts_with("Failed to send"));
    line.unwrap_or("it does not say why").chars().take(COMPLAINT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::options;

    #[test]
    fn ports_and_mtu_become_arguments() {
        let options = options(&[("user", "on"), ("tcp", "2222:22+8080"), ("mtu", "1500")]);
        let expected = ["--quiet", "--mtu", "1500", "--tcp-ports", "2222:22,8080"];
        assert_eq!(Passt::new(&options).arguments, expected);
    }

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let passt = Passt::new(&options(&[("user", "on")]));
        let error = passt.start("no-such-passt").unwrap_err();
        assert!(error.contains("no-such-passt is missing: install the package passt"), "{error}");
    }

    #[test]
    fn a_program_that_fails_is_told_with_its_last_words() {
        let passt = Passt { arguments: Vec::new() };
        let error = passt.start("false").unwrap_err();
        assert!(error.contains("it does not say why"), "{error}");
        let words = b"Failed to send 47 bytes to syslog\nInvalid port\nFailed to send 3 bytes to syslog\n";
        assert_eq!(complaint(words), "Invalid port");
    }
}
