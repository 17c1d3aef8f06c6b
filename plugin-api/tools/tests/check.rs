//! The conformance tests pass for the plugins of this repository, and name what is wrong with each bad one.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed expectation fails the test")]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// What `gvmm plugin check` says of a plugin.
struct Checked {
    code: i32,
    report: Value,
}

impl Checked {
    /// The names of the tests with a verdict.
    fn with(&self, verdict: &str) -> Vec<&str> {
        let tests = self.report["tests"].as_array().unwrap().iter();
        tests.filter(|test| test["verdict"] == verdict).map(|test| test["name"].as_str().unwrap()).collect()
    }

    /// What a test has to say.
    fn detail(&self, name: &str) -> &str {
        let tests = self.report["tests"].as_array().unwrap();
        let test = tests.iter().find(|test| test["name"] == name).unwrap();
        test["detail"].as_str().unwrap_or_default()
    }
}

fn check(file: &Path, options: &str, arguments: &[&str]) -> Checked {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gvmm-plugin"));
    command.args(["check", "--json", &format!("{}{options}", file.display())]).args(arguments);
    let output = command.output().unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let report =
        report.unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    Checked { code: output.status.code().unwrap(), report }
}

/// Checks that exactly one test fails, and with these words.
fn found_out(file: &Path, options: &str, test: &str, words: &str) {
    let checked = check(file, options, &["--timeout", "30"]);
    assert_eq!(checked.with("fail"), [test], "{options}: {:#}", checked.report);
    assert_eq!(checked.code, 1);
    let detail = checked.detail(test);
    assert!(detail.contains(words), "{options}: {detail}");
}

/// Does something for each: the tests wait more than they work.
fn in_parallel<T: Send>(list: impl IntoIterator<Item = T>, body: impl Fn(T) + Sync) {
    std::thread::scope(|scope| {
        for item in list {
            let body = &body;
            scope.spawn(move || body(item));
        }
    });
}

/// The plugins of the workspace, with options for the check where `package.metadata.gvmm.check-options` has some.
fn plugins() -> Vec<(String, String)> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version", "1"]);
    let metadata: Value = serde_json::from_slice(&cargo.output().unwrap().stdout).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins").canonicalize().unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let ours = packages
        .filter(|package| PathBuf::from(package["manifest_path"].as_str().unwrap()).starts_with(&folder));
    let found: Vec<_> = ours
        .map(|package| {
            let options = package["metadata"]["gvmm"]["check-options"].as_str().unwrap_or_default();
            (package["name"].as_str().unwrap().to_owned(), options.to_owned())
        })
        .collect();
    assert!(found.len() >= 5);
    found
}

#[test]
fn every_plugin_of_the_repository_passes() {
    in_parallel(plugins(), |(name, options)| {
        let checked = check(&gvmm_built::plugin(&name), &options, &[]);
        assert_eq!(checked.with("fail"), [""; 0], "{name}: {:#}", checked.report);
        assert_eq!(checked.code, 0);
        assert!(checked.with("pass").len() >= 10, "{name}: {:#}", checked.report);
    });
}

#[test]
fn files_that_cannot_be_loaded_are_found_out() {
    for (name, words) in [
        ("no_section", "no .gvmm.plugin section"),
        ("no_entry", "no code to go with it"),
        ("other_api", "built for plugin API 9.1, this gvmm offers 0.2: update gvmm"),
        (
            "needs_too_much",
            "it needs the interface gvmm.tomorrow/1, which this gvmm does not offer: update gvmm",
        ),
        ("dies_when_loaded", "was killed by SIGABRT"),
    ] {
        found_out(&gvmm_built::bad_plugin(name), "", "loads", words);
    }
}

#[test]
fn devices_that_cannot_be_made_are_found_out() {
    found_out(&gvmm_built::bad_plugin("panics_in_create"), "", "creates", "panicked: no device today");
    let panics = gvmm_built::bad_plugin("panics_in_access");
    for (at, test) in [("layout", "creates"), ("node", "creates"), ("start", "starts")] {
        found_out(&panics, &format!(",at={at}"), test, &format!("told to panic in {at}"));
    }
    found_out(&gvmm_built::bad_plugin("bad_registers"), ",how=start-fails", "starts", "told to fail");
    found_out(&gvmm_built::bad_plugin("bad_registers"), ",how=panics-in-reset", "starts", "panic in reset");
}

#[test]
fn panics_that_end_the_process_are_found_out() {
    let file = gvmm_built::bad_plugin_that_aborts("dies_of_panics");
    found_out(&file, "", "panics", "was killed by SIGABRT");
    assert!(check(&file, "", &["--filter", "panics"]).detail("panics").contains("panic = \"unwind\""));
}

#[test]
fn bad_words_and_open_doors_are_found_out() {
    found_out(&gvmm_built::bad_plugin("bad_words"), "", "descriptor", "'200' is not a number from 1 to 100");
    found_out(
        &gvmm_built::bad_plugin("lets_junk_in"),
        "",
        "options",
        "option 'no-such-option': a device was made",
    );
}

#[test]
fn bad_registers_are_found_out() {
    let file = gvmm_built::bad_plugin("bad_registers");
    let members = [
        ("no-window", "shape", "no register window"),
        ("owns-reg", "node", "property 'reg' is the machine's"),
        ("no-compatible", "node", "without `compatible`"),
        ("claims-interrupts", "node", "extra node 'key': property 'interrupts' is the machine's"),
        ("wide-value", "registers", "gives 0x123456789, which is wider"),
        ("panics-unaligned", "registers", "not aligned"),
        ("one-at-a-time", "parallel", "two accesses at once"),
        ("keeps-state", "reset", "after a reset the register at offset 0x0 of window 0 is"),
        ("leaves-thread", "leaks", "threads are left: 8"),
        ("leaves-descriptor", "leaks", "file descriptors are left: 8"),
        ("leaves-mapping", "leaks", "mappings are left"),
    ];
    in_parallel(members, |(how, test, words)| {
        found_out(&file, &format!(",how={how}"), test, words);
    });
    let good = check(&file, "", &[]);
    assert_eq!(good.with("fail"), [""; 0], "{:#}", good.report);
}

#[test]
fn bad_functions_are_found_out() {
    let file = gvmm_built::bad_plugin("bad_function");
    let members = [
        ("odd-bar", "shape", "BAR 4 of 0x18 bytes: sizes are powers of two from 16 on"),
        ("start-fails", "starts", "told to fail"),
        ("wide-value", "registers", "at offset 0x8 of BAR 4 gives 0x123456789, which is wider"),
        ("panics-unaligned", "registers", "not aligned"),
        ("keeps-state", "reset", "after a reset the register at offset 0x8 of BAR 4 is"),
    ];
    in_parallel(members, |(how, test, words)| {
        found_out(&file, &format!(",how={how}"), test, words);
    });
    let good = check(&file, "", &[]);
    assert_eq!(good.with("fail"), [""; 0], "{:#}", good.report);
    assert_eq!(
        good.with("skip"),
        ["node", "config", "queues", "requests", "handover", "hostile", "vhost-user"]
    );
}

#[test]
fn a_test_that_does_not_end_is_ended() {
    let file = gvmm_built::bad_plugin("bad_registers");
    let checked = check(&file, ",how=hangs", &["--filter", "registers", "--timeout", "3"]);
    assert_eq!(checked.with("fail"), ["registers"]);
    assert_eq!(checked.detail("registers"), "the process did not end in the time allowed");
}

#[test]
fn bad_queues_are_found_out() {
    let file = gvmm_built::bad_plugin("bad_queues");
    let members = [
        ("other-type", "shape", "says device type 63, the device is of type 5"),
        ("odd-queue-size", "shape", "queue size 24 is not a power of two"),
        ("config-panics", "config", "panicked"),
        ("config-shifts", "config", "as part of the whole"),
        ("keeps-config", "reset", "after a reset configuration space is"),
        ("forgets-state", "queues", "it says that it stands at 0"),
        ("takes-any-queue", "queues", "queue 2 was started, but there are 2"),
        ("swallows", "requests", "neither done nor put back"),
        ("scribbles", "requests", "written outside of the buffers"),
        ("long-answers", "requests", "came back with 1048576 written"),
        ("trusts-chains", "hostile", "index out of bounds"),
        ("knows-its-host", "vhost-user", "0 bytes are written over vhost-user"),
        ("leaves-thread", "leaks", "threads are left: 8"),
    ];
    in_parallel(members, |(how, test, words)| {
        let checked = check(&file, &format!(",how={how}"), &["--timeout", "60"]);
        assert!(checked.with("fail").contains(&test), "{how}: {:#}", checked.report);
        assert!(checked.detail(test).contains(words), "{how}: {}", checked.detail(test));
    });
    let good = check(&file, "", &[]);
    assert_eq!(good.with("fail"), [""; 0], "{:#}", good.report);
}

#[test]
fn the_tests_are_listed_and_run_by_name() {
    let output = Command::new(env!("CARGO_BIN_EXE_gvmm-plugin")).args(["check", "--list"]).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    let names: Vec<_> = list.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    let file = gvmm_built::bad_plugin("bad_registers");
    let all = check(&file, "", &["--in-process"]);
    assert_eq!(all.report["tests"].as_array().unwrap().len(), names.len());
    assert_eq!(all.with("fail"), [""; 0], "{:#}", all.report);
    let some = check(&file, "", &["--filter", "reset", "--filter", "regist"]);
    assert_eq!(some.with("pass"), ["registers", "reset"]);
}
