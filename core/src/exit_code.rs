//! Exit codes of gvmm. They are part of the interface: scripts depend on them.

use std::process::ExitCode;

/// How gvmm ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The guest powered off, or gvmm was asked to stop.
    PowerOff = 0,
    /// The VM was fine as far as gvmm can tell, but the hypervisor did not start it.
    StartFailed = 1,
    /// The command line, a file it names or this machine does not allow a VM; nothing was started.
    Usage = 2,
    /// The guest asked for a reset and `--on-reset` is `exit`.
    Reset = 3,
    /// The guest or the hypervisor under it crashed.
    Crash = 4,
    /// The guest powered off, but a device had failed on the way.
    LostDevice = 5,
}

impl From<Code> for ExitCode {
    fn from(code: Code) -> Self {
        Self::from(code as u8)
    }
}
