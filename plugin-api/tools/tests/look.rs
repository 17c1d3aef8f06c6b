//! Plugins are listed and inspected without running their code, and loaded where they can do no harm.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Exit code and what was written.
fn plugin_command(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gvmm-plugin"));
    command.args(arguments).env("GVMM_PLUGIN_PATH", folder).env("HOME", "/nonexistent");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

fn json(folder: &Path, arguments: &[&str]) -> (i32, Value) {
    let (code, text) = plugin_command(folder, arguments);
    (code, serde_json::from_str(&text).unwrap())
}

#[test]
fn plugins_are_listed_with_what_is_wrong_with_them() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(gvmm_built::plugin("pl031"), folder.path().join("pl031.so")).unwrap();
    std::fs::copy(gvmm_built::bad_plugin("dies_when_loaded"), folder.path().join("dies.so")).unwrap();
    std::fs::copy(gvmm_built::bad_plugin("bad_function"), folder.path().join("card.so")).unwrap();
    std::fs::write(folder.path().join("text.so"), "no plugin").unwrap();
    let (code, list) = json(folder.path(), &["list", "--json"]);
    assert_eq!(code, 0);
    let of_name = |name: &str| list.as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap();
    assert_eq!(of_name("pl031")["plugin"]["kind"], "mmio");
    assert_eq!(of_name("dies")["plugin"]["id"], "org.gvmm.bad.dies");
    assert!(of_name("text")["refused"].as_str().unwrap().contains("not an ELF shared library"));
    let (_, text) = plugin_command(folder.path(), &["list"]);
    assert!(text.contains("pl031  mmio    0.1.0    Arm PL031 real-time clock"), "{text}");
    assert!(text.contains("card   pci     0.1.0    Does one thing wrong on PCI"), "{text}");
    let (_, text) = plugin_command(folder.path(), &["inspect", "card"]);
    for line in ["kind        pci\n", "API         0.2, which this gvmm (0.2) takes\n"] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    let (_, text) = plugin_command(folder.path(), &["list"]);
    assert!(text.contains("text   cannot be used: plugin "), "{text}");
}

#[test]
fn a_plugin_tells_its_options_and_what_it_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(gvmm_built::plugin("virtio_blk"), folder.path().join("virtio_blk.so")).unwrap();
    let (code, report) = json(folder.path(), &["inspect", "virtio_blk", "--json", "--load"]);
    assert_eq!(code, 0);
    assert_eq!((&report["plugin"]["virtio_type"], &report["load"]["loads"]), (&2.into(), &true.into()));
    let options = report["plugin"]["options"].as_array().unwrap();
    let disk = options.iter().find(|option| option["name"] == "disk").unwrap();
    assert_eq!((&disk["type"], &disk["required"]), (&"path".into(), &true.into()));
    let (_, text) = plugin_command(folder.path(), &["inspect", "virtio_blk"]);
    for line in
        ["kind        virtio device of type 2 (blk)", "opens       disk (read-write)", "  disk=<PATH>"]
    {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[test]
fn a_plugin_that_ends_its_process_ends_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let file = gvmm_built::bad_plugin("dies_when_loaded");
    let file = file.to_str().unwrap();
    let (code, report) = json(folder.path(), &["inspect", file, "--json"]);
    assert_eq!((code, &report["plugin"]["name"]), (0, &"dies_when_loaded".into()));
    let (code, report) = json(folder.path(), &["inspect", file, "--json", "--load"]);
    assert_eq!(code, 1);
    assert_eq!(report["load"]["why_not"], "the process was killed by SIGABRT");
}

#[test]
fn other_versions_are_told_in_one_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let file = gvmm_built::bad_plugin("other_api");
    let (code, text) = plugin_command(folder.path(), &["inspect", file.to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(text.contains("API         9.1, which this gvmm does not take: "), "{text}");
    assert!(text.contains("it was built for plugin API 9.1, this gvmm offers 0.2: update gvmm"), "{text}");
    let (code, text) = plugin_command(folder.path(), &["inspect", "nothing"]);
    assert_eq!(code, 2);
    assert!(text.starts_with("gvmm plugin: plugin nothing: nothing.so is in none of "), "{text}");
}
