//! What cargo builds of this workspace, for tests and benchmarks that run it.
//!
//! The files are built on first use, in the same way as everybody else builds them: nothing has to be built before.
#![forbid(unsafe_code)]
#![allow(clippy::expect_used, reason = "without the programs no test can run")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

/// The program of a package.
pub fn program(package: &str) -> PathBuf {
    built(&["--package", package], package)
}

/// `gvmm-device`, which hosts plugins in processes of their own.
pub fn device_program() -> PathBuf {
    built(&["--package", "gvmm-vhost"], "gvmm-device")
}

/// The shared library of a plugin package below `plugins/`.
pub fn plugin(package: &str) -> PathBuf {
    built(&["--package", package], package)
}

/// The shared library of a misbehaving plugin, an example of `tests/bad-plugins`.
pub fn bad_plugin(name: &str) -> PathBuf {
    built(&["--package", "bad-plugins", "--example", name], name)
}

/// As [`bad_plugin`], built so that a panic in it ends the process.
pub fn bad_plugin_that_aborts(name: &str) -> PathBuf {
    built_by("rustc", &["--package", "bad-plugins", "--example", name, "--", "-Cpanic=abort"], name)
}

/// As [`plugin`], with optimisation.
pub fn release_plugin(package: &str) -> PathBuf {
    built(&["--release", "--package", package], package)
}

/// Builds what the arguments say and finds the program or shared library of the target.
fn built(arguments: &[&str], target: &str) -> PathBuf {
    built_by("build", arguments, target)
}

/// As [`built`], by a command of cargo.
fn built_by(command: &str, arguments: &[&str], target: &str) -> PathBuf {
    static DONE: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut done = DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let key = format!("{command} {}", arguments.join(" "));
    if let Some(file) = done.get(&key) {
        return file.clone();
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([command, "--quiet", "--message-format=json"]).args(arguments).stderr(Stdio::inherit());
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "cargo {key} failed");
    let file = String::from_utf8_lossy(&output.stdout).lines().find_map(|line| artifact(line, target));
    let file = file.expect("cargo names the file that it built");
    done.insert(key, file.clone());
    file
}

/// The file that a message of cargo names for a target.
fn artifact(line: &str, target: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["target"]["name"] != target {
        return None;
    }
    let library =
        message["filenames"].as_array()?.iter().filter_map(Value::as_str).find(|file| file.ends_with(".so"));
    message["executable"].as_str().or(library).map(PathBuf::from)
}
