//! The plugins of `docs/plugins/examples`, a workspace that knows gvmm by its plugin interface alone.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/plugins/examples").canonicalize().unwrap()
}

/// The target folder of the tests: what is built there already need not be built again.
fn target() -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_gvmm-plugin")).ancestors().nth(2).unwrap().to_owned()
}

fn cargo(arguments: &[&str]) -> String {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(folder()).env("CARGO_TARGET_DIR", target());
    let output = cargo.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cargo {arguments:?}: {said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// The packages as cargo sees them.
fn packages() -> Vec<Value> {
    let metadata: Value =
        serde_json::from_str(&cargo(&["metadata", "--no-deps", "--format-version", "1"])).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

#[test]
fn examples_are_well_formed_and_pass_their_own_tests() {
    cargo(&["fmt", "--all", "--check"]);
    let said = cargo(&["test", "--workspace", "--tests"]);
    let results: Vec<_> = said.lines().filter(|line| line.starts_with("test result: ok.")).collect();
    assert_eq!(results.len(), packages().len(), "{said}");
}

#[test]
fn examples_pass_the_conformance_tests() {
    cargo(&["build", "--workspace"]);
    let folder = tempfile::tempdir().unwrap();
    let socket = format!(",socket={}", folder.path().join("gpio.sock").display());
    let temperature = folder.path().join("temp");
    std::fs::write(&temperature, "21500\n").unwrap();
    let file = format!(",file={}", temperature.display());
    for (name, options) in [("pl061", ""), ("pl061", &socket), ("virtio_i2c", ""), ("virtio_i2c", &file)] {
        let plugin = target().join("debug").join(format!("lib{name}.so"));
        let mut check = Command::new(env!("CARGO_BIN_EXE_gvmm-plugin"));
        let output = check.arg("check").arg(format!("{}{options}", plugin.display())).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "{name}{options}: {said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let passed: usize = said.lines().filter(|line| line.starts_with("pass")).count();
        assert!(passed >= 12, "{name}{options}: {said}");
    }
}

#[test]
fn examples_know_of_gvmm_its_plugin_interface_alone() {
    for package in packages() {
        let dependencies = package["dependencies"].as_array().unwrap();
        let ours = dependencies.iter().map(|dependency| dependency["name"].as_str().unwrap());
        let ours = ours.filter(|name| name.starts_with("gvmm"));
        assert!(ours.clone().count() > 0 && ours.clone().all(|name| name == "gvmm-plugin-api"), "{package}");
    }
}
