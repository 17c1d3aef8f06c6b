//! The tutorial, followed word by word from an empty folder, and its code held against the devices that it shows.
#![allow(clippy::unwrap_used, reason = "a failed expectation fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The blocks of code in a language.
fn blocks(language: &str) -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/plugins/tutorial.md")).unwrap();
    let opening = format!("```{language}\n");
    let blocks = page.split(&opening).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

/// The shell commands, with what a first build would fetch or build put in place.
fn script() -> String {
    let mut script = "set -ex\n".to_owned();
    for line in blocks("sh").concat().lines() {
        script += &format!("{line}\n");
        if let Some(new) = line.strip_prefix("gvmm plugin new ") {
            let name = new.split(' ').next().unwrap();
            script +=
                &format!("cp \"$LOCK_FILE\" {name}/Cargo.lock\nln -s \"$SHARED_TARGET\" {name}/target\n");
        }
    }
    script
}

#[test]
fn the_commands_lead_from_an_empty_folder_to_two_plugins_that_pass() {
    let gvmm = gvmm_built::program("gvmm");
    let programs = gvmm.parent().unwrap();
    let target = programs.parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", &script()]).current_dir(folder.path()).env("PATH", path);
    shell.env("LOCK_FILE", root().join("Cargo.lock")).env("SHARED_TARGET", target);
    shell.env("GVMM_PLUGIN_API", root().join("plugin-api"));
    shell.env("CARGO_NET_OFFLINE", "true").env_remove("CARGO_TARGET_DIR");
    let output = shell.output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{said}");
    for line in ["counter: ", "echo: "] {
        let summary = said.lines().find(|said| said.starts_with(line) && said.contains("tests passed"));
        assert!(summary.unwrap().contains(" 0 failed"), "{said}");
    }
}

#[test]
fn the_code_is_that_of_the_devices_which_are_built_and_tested() {
    let files = ["counter/src/lib.rs", "counter/src/device.rs", "echo/src/device.rs"];
    let sources = files.map(|file| fs::read_to_string(root().join("tests").join(file)).unwrap());
    let blocks = blocks("rust");
    assert!(blocks.len() >= 10);
    for block in blocks {
        assert!(sources.iter().any(|source| source.contains(&block)), "drifted:\n{block}");
    }
}
