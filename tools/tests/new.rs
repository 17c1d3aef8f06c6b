//! What `gvmm plugin new` makes builds at once, passes its own tests and the conformance tests.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::fs;
use std::path::Path;
use std::process::Command;

/// Runs cargo in a new crate, with what this workspace has built already and without a network.
fn cargo(folder: &Path, arguments: &[&str]) {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).args(["--offline", "--quiet"]).current_dir(folder).env("CARGO_TARGET_DIR", target);
    let output = cargo.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&said));
}

fn gvmm_plugin(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_gvmm-plugin")).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn a_new_plugin_builds_and_passes_its_tests_and_ours() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let into = tempfile::tempdir().unwrap();
    let api = root.join("plugin-api");
    for kind in ["mmio", "virtio"] {
        let name = format!("fresh_{kind}");
        let (into, api) = (into.path().to_str().unwrap(), api.to_str().unwrap());
        gvmm_plugin(&["new", &name, "--kind", kind, "--api", api, "--into", into]);
        let folder = Path::new(into).join(&name);
        // The versions that are here already, since nothing is fetched.
        fs::copy(root.join("Cargo.lock"), folder.join("Cargo.lock")).unwrap();
        cargo(&folder, &["test"]);
        cargo(&folder, &["build"]);
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let library = library.join("debug").join(format!("lib{name}.so"));
        gvmm_plugin(&["check", library.to_str().unwrap()]);
        fs::remove_file(library).unwrap();
    }
}
