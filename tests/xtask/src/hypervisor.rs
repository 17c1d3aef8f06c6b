//! Whether this machine has a hypervisor that gvmm can run a guest with.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use serde_json::Value;

/// Hypervisors of Linux on arm64 that gvmm can use.
pub(crate) const DEVICES: [&str; 2] = ["/dev/gunyah", "/dev/kvm"];

/// What opening the devices of hypervisors tells, without gvmm.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// One can be opened.
    Granted,
    /// None of those that are there can be opened by this user; the text says which and why.
    Refused(String),
    /// There is none.
    Missing,
}

/// Tries to open devices.
pub(crate) fn access(devices: &[&str]) -> Access {
    let mut refused = Vec::new();
    for device in devices {
        match File::options().read(true).write(true).open(device) {
            Ok(_) => return Access::Granted,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::PermissionDenied => refused.push(format!(
                "{device}: {error}: become a member of its group (`ls -l` names it) and log in anew"
            )),
            Err(error) => refused.push(format!("{device}: {error}")),
        }
    }
    if refused.is_empty() { Access::Missing } else { Access::Refused(refused.join("; ")) }
}

/// Asks a gvmm for this machine why it cannot run a guest here; `None` if it can.
pub(crate) fn obstacle(gvmm: &Path) -> Result<Option<String>> {
    let mut doctor = Command::new(gvmm);
    doctor.args(["doctor", "--json"]).stdin(Stdio::null()).stderr(Stdio::inherit());
    // Its exit code says once more whether a guest can run.
    let output = doctor.output().with_context(|| format!("cannot start {}", gvmm.display()))?;
    let report: Value = serde_json::from_slice(&output.stdout).context("output of `gvmm doctor --json`")?;
    Ok(obstacle_in(&report))
}

fn obstacle_in(report: &Value) -> Option<String> {
    if report["can_run"] == true {
        return None;
    }
    let (gunyah, kvm) = (&report["gunyah"], &report["kvm"]);
    let details = [(gunyah["state"] != "missing").then_some(&gunyah["detail"]), Some(&kvm["detail"])];
    Some(details.into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_that_opens_is_enough_whatever_the_others_do() {
        let node = tempfile::NamedTempFile::new().unwrap();
        // A folder cannot be opened for writing, not even by root.
        assert_eq!(access(&["/", "/nonexistent/kvm", node.path().to_str().unwrap()]), Access::Granted);
    }

    #[test]
    fn devices_that_do_not_open_are_named_with_the_cause() {
        let why = "/tmp: Is a directory (os error 21); /: Is a directory (os error 21)";
        assert_eq!(access(&["/tmp", "/nonexistent/gunyah", "/"]), Access::Refused(why.to_owned()));
    }

    #[test]
    fn without_a_device_there_is_nothing_to_tell() {
        assert_eq!(access(&["/nonexistent/gunyah", "/nonexistent/kvm"]), Access::Missing);
    }

    #[test]
    fn what_the_doctor_says_of_a_hypervisor_that_is_there_is_the_obstacle() {
        let gunyah = json!({"state": "missing", "detail": "no Gunyah"});
        let kvm = json!({"usable": false, "detail": "no GICv3"});
        let report = json!({"can_run": false, "gunyah": gunyah, "kvm": kvm});
        assert_eq!(obstacle_in(&report).unwrap(), "no GICv3");
        let gunyah = json!({"state": "other-driver", "detail": "the vendor's driver"});
        let report = json!({"can_run": false, "gunyah": gunyah, "kvm": kvm});
        assert_eq!(obstacle_in(&report).unwrap(), "the vendor's driver; no GICv3");
        assert_eq!(obstacle_in(&json!({"can_run": true, "gunyah": gunyah, "kvm": kvm})), None);
    }
}
