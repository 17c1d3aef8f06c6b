//! Whether SELinux stands between this process and a device.

use std::fs;

use serde::Serialize;

/// State of SELinux.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SeLinux {
    /// Not in use.
    Off,
    /// Denials are logged alone.
    Permissive,
    /// Denials are enforced.
    Enforcing,
}

impl SeLinux {
    /// The state now. Where this process may not even ask, denials are enforced.
    pub fn query() -> Self {
        match fs::read_to_string("/sys/fs/selinux/enforce") {
            Ok(text) if text.trim() == "0" => Self::Permissive,
            Ok(_) => Self::Enforcing,
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Self::Enforcing,
            Err(_) => Self::Off,
        }
    }
}
