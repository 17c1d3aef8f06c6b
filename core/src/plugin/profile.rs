//! Profiles: the devices that a machine has without being asked, as data beside the plugins.
//!
//! ```toml
//! [[device]]
//! plugin = "pl011"
//! [device.options]
//! console = "stdio"
//! # Words for the kernel command line, see `CmdlineRule`.
//! [device.cmdline]
//! words = "console=ttyAMA0"
//! early = "earlycon"
//! unless = ["console="]
//! kernel-has = ["pl011"]
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::argument::{DeviceArgument, Isolation};
use super::search;
use crate::machine::cmdline::CmdlineRule;

/// File name of the default profile in a plugin folder.
const DEFAULT: &str = "default.toml";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Profile {
    #[serde(default)]
    device: Vec<Device>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    plugin: String,
    id: Option<String>,
    #[serde(default)]
    options: BTreeMap<String, String>,
    cmdline: Option<CmdlineRule>,
}

/// A device of a profile.
#[derive(Debug)]
pub struct DefaultDevice {
    /// As it would be written on the command line.
    pub argument: DeviceArgument,
    /// What it adds to the kernel command line.
    pub cmdline: Option<CmdlineRule>,
}

/// The default devices: those of the first `default.toml` in the plugin folders. A profile names plugins of its own
/// folder. Without a profile there are none, and a warning says so.
pub fn default_devices() -> Result<Vec<DefaultDevice>, String> {
    let folders = search::folders();
    match folders.iter().find(|folder| folder.join(DEFAULT).exists()) {
        Some(folder) => read(folder, &folder.join(DEFAULT)),
        None => {
            let searched: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            tracing::warn!(
                "no {DEFAULT} in {}: the machine has only the devices of the command line",
                searched.join(", ")
            );
            Ok(Vec::new())
        }
    }
}

fn read(folder: &Path, file: &PathBuf) -> Result<Vec<DefaultDevice>, String> {
    let refused = |error: &dyn std::fmt::Display| format!("profile {}: {error}", file.display());
    let text = std::fs::read_to_string(file).map_err(|e| refused(&e))?;
    let profile: Profile = toml::from_str(&text).map_err(|e| refused(&e))?;
    let default = |device: Device| DefaultDevice {
        argument: DeviceArgument {
            plugin: folder.join(format!("{}.so", device.plugin)).display().to_string(),
            id: device.id,
            help: false,
            isolate: Isolation::Off,
            options: device.options.into_iter().collect(),
        },
        cmdline: device.cmdline,
    };
    Ok(profile.device.into_iter().map(default).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<DefaultDevice>, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(DEFAULT);
        std::fs::write(&file, text).unwrap();
        read(Path::new("/p"), &file)
    }

    #[test]
    fn a_profile_lists_devices_with_options() {
        let devices = read_text(
            "[[device]]\nplugin = 'a'\n[device.options]\nk = 'v'\n[[device]]\nplugin = 'b'\nid = 'x'",
        )
        .unwrap();
        assert_eq!(devices[0].argument.plugin, "/p/a.so");
        assert_eq!(devices[0].argument.pairs().collect::<Vec<_>>(), [("k", "v")]);
        assert_eq!(devices[1].argument.id.as_deref(), Some("x"));
        assert_eq!(devices[1].cmdline, None);
    }

    #[test]
    fn a_device_may_add_to_the_kernel_command_line() {
        let rule = "words = 'w'\nunless = ['u=']\nkernel-has = ['k']";
        let devices = read_text(&format!("[[device]]\nplugin = 'a'\n[device.cmdline]\n{rule}")).unwrap();
        assert_eq!(devices[0].cmdline, Some(toml::from_str(rule).unwrap()));
        let error = read_text("[[device]]\nplugin = 'a'\n[device.cmdline]\nwords = 'w'").unwrap_err();
        assert!(error.contains("unless"), "{error}");
    }

    #[test]
    fn a_broken_profile_is_refused_with_its_place() {
        let error = read_text("[[device]]\nplugin = 'a'\nspeed = 'x'").unwrap_err();
        assert!(error.contains(DEFAULT) && error.contains("speed") && error.contains("line 3"), "{error}");
    }
}
