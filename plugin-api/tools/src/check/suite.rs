//! The tests by name.

use super::report::Verdict;
use super::subject::Subject;
use super::{
    boundary, config, descriptor, handover, hostile, leaks, nodes, options, queues, registers, requests,
    reset, vhost_user,
};

/// A conformance test.
pub(super) struct Test {
    /// What users call it.
    pub(super) name: &'static str,
    /// What a plugin that passes does.
    pub(super) about: &'static str,
    /// The error says what the plugin does instead.
    pub(super) run: fn(&Subject) -> Result<Verdict, String>,
    /// What to say when the process was killed by a signal.
    pub(super) when_killed: &'static str,
}

const fn test(name: &'static str, about: &'static str, run: fn(&Subject) -> Result<Verdict, String>) -> Test {
    Test { name, about, run, when_killed: "" }
}

/// Tests without which no other makes sense.
pub(super) const BEFORE_ALL: &[&str] = &["loads", "descriptor", "creates", "shape", "starts"];

/// All tests in the order in which they run.
pub(super) static TESTS: &[Test] = &[
    test("loads", "the library loads, and its code says what its descriptor says", boundary::loads),
    test("descriptor", "the descriptor is complete and makes sense", descriptor::descriptor),
    test("creates", "a device is made and dropped", boundary::creates),
    test("shape", "the device is what the descriptor says, and what a machine can have", descriptor::shape),
    test("starts", "a device is started, reset and dropped", boundary::starts),
    Test {
        when_killed: "; build it with panic = \"unwind\", so that a panic is caught before it leaves the plugin",
        ..test("panics", "a panic inside the plugin ends nothing but the call", boundary::panics)
    },
    test("node", "the device-tree nodes have what is the device's to say, and no more", nodes::node),
    test("options", "options that make no sense are refused by name", options::options),
    test("registers", "every offset of every window or BAR takes every width", registers::registers),
    test("parallel", "several vCPUs may access registers at once", registers::parallel),
    test("config", "every part of configuration space can be read and written", config::config),
    test("reset", "a reset leads back to the first state, twice as well as once", reset::reset),
    test("queues", "queues start and stop one by one and keep where they stand", queues::queues),
    test(
        "requests",
        "a request comes back once, written where it may be and nowhere else",
        requests::requests,
    ),
    test("handover", "requests go on in another device from where a queue was stopped", handover::handover),
    test("hostile", "rings and descriptors that make no sense do no harm", hostile::hostile),
    test(
        "vhost-user",
        "a vhost-user back end of the device does what the device does",
        vhost_user::vhost_user,
    ),
    test("leaks", "no thread, descriptor or mapping is left of a device", leaks::leaks),
];

/// The test with this name.
pub(super) fn of_name(name: &str) -> Result<&'static Test, String> {
    TESTS.iter().find(|test| test.name == name).ok_or_else(|| format!("there is no test '{name}'"))
}

/// The tests whose name contains one of the texts, or all without any.
pub(super) fn selected(filter: &[String]) -> Result<Vec<&'static Test>, String> {
    let wanted = |test: &Test| filter.is_empty() || filter.iter().any(|text| test.name.contains(text));
    if !TESTS.iter().any(wanted) {
        let names: Vec<_> = TESTS.iter().map(|test| test.name).collect();
        return Err(format!("--filter {}: there are {}", filter.join(" "), names.join(", ")));
    }
    Ok(TESTS.iter().filter(|test| wanted(test)).collect())
}

/// A line for each test.
pub(super) fn list() -> String {
    TESTS.iter().map(|test| format!("{:<12} {}\n", test.name, test.about)).collect()
}
