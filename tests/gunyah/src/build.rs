//! The programs under test, built as cargo builds them for everybody else.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// Packages that a run needs.
const PACKAGES: [&str; 5] = ["gvmm", "gunyah-sim", "pl011", "pl031", "virtio_blk"];

/// What cargo built.
#[derive(Debug)]
pub(crate) struct Programs {
    pub gvmm: PathBuf,
    pub simulator: PathBuf,
    /// Name and file of each plugin.
    pub plugins: Vec<(String, PathBuf)>,
}

/// The programs, built once a process.
pub(crate) fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(build)
}

fn build() -> Programs {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--message-format=json"]).stderr(Stdio::inherit());
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    let output = command.output().expect("cargo runs");
    assert!(output.status.success(), "cargo build failed");
    let (mut gvmm, mut simulator, mut plugins) = (None, None, Vec::new());
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
        let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        let library = strings(&message["filenames"]).find(|file| file.ends_with(".so"));
        match (name.as_str(), message["executable"].as_str(), library) {
            ("gvmm", Some(program), _) => gvmm = Some(PathBuf::from(program)),
            ("gunyah_sim", _, Some(library)) => simulator = Some(PathBuf::from(library)),
            ("pl011" | "pl031" | "virtio_blk", _, Some(library)) => {
                plugins.push((name, PathBuf::from(library)))
            }
            _ => {}
        }
    }
    Programs { gvmm: gvmm.expect("gvmm"), simulator: simulator.expect("the simulator"), plugins }
}

fn strings(value: &Value) -> impl Iterator<Item = String> + '_ {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}
