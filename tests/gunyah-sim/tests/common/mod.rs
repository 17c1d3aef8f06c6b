//! Tests of the preloaded library: each runs its body in a child process that has the library in front of libc, and
//! looks at the trace and the report that the child leaves.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failure here is the test's failure")]

pub(crate) mod client;
pub(crate) mod tree;

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

const CHILD: &str = "GUNYAH_SIM_TEST_CHILD";

/// A simulation to run a test's body in.
pub(crate) struct Sim {
    vars: Vec<(String, String)>,
    folder: TempDir,
}

/// What a body left.
pub(crate) struct Outcome {
    pub(crate) status: std::process::ExitStatus,
    pub(crate) output: String,
    pub(crate) trace: Vec<Value>,
    pub(crate) report: Value,
}

/// The library cargo built beside this test.
fn library() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap();
    [folder, folder.parent().unwrap()]
        .iter()
        .map(|folder| folder.join("libgunyah_sim.so"))
        .find(|path| path.exists())
        .expect("cargo builds the library for its tests")
}

impl Sim {
    pub(crate) fn new(kind: &str) -> Sim {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let vars = [
            ("GUNYAH_SIM", kind.to_owned()),
            ("GUNYAH_SIM_TRACE", path("trace")),
            ("GUNYAH_SIM_REPORT", path("report")),
            ("GUNYAH_SIM_MEMLOCK", "off".to_owned()),
        ];
        Sim { vars: vars.map(|(name, value)| (name.to_owned(), value)).to_vec(), folder }
    }

    pub(crate) fn var(mut self, name: &str, value: &str) -> Sim {
        self.vars.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn inject(self, what: &str) -> Sim {
        self.var("GUNYAH_SIM_INJECT", what)
    }

    /// What vCPU 0 (or each vCPU, if `steps` begins with `[`) does.
    pub(crate) fn script(self, steps: &str) -> Sim {
        let vcpus = if steps.starts_with('[') { steps.to_owned() } else { format!("[{steps}]") };
        let path = self.folder.path().join("script.json");
        std::fs::write(&path, format!(r#"{{"vcpus": [{vcpus}]}}"#)).unwrap();
        self.var("GUNYAH_SIM_SCRIPT", &path.display().to_string())
    }

    /// Runs `body` as the test `name` in a child, and hands back what it left. The child never returns from here.
    pub(crate) fn run(self, name: &str, body: impl FnOnce()) -> Outcome {
        // A test may use several simulations: its child is meant for the one of its own kind.
        let (variable, kind) = &self.vars[0];
        if std::env::var(CHILD).as_deref() == Ok(name) && std::env::var(variable).as_ref() == Ok(kind) {
            body();
            std::process::exit(0);
        }
        let output = Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture", "--test-threads=1"])
            .env("LD_PRELOAD", library())
            .env(CHILD, name)
            .env("RUST_BACKTRACE", "0")
            .envs(self.vars)
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Outcome {
            status: output.status,
            output: text(&output.stdout) + &text(&output.stderr),
            trace: lines(&self.folder.path().join("trace")),
            report: std::fs::read(self.folder.path().join("report"))
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok())
                .unwrap_or_default(),
        }
    }

    /// Like [`Sim::run`], for bodies whose own assertions are the test.
    pub(crate) fn check(self, name: &str, body: impl FnOnce()) -> Outcome {
        let outcome = self.run(name, body);
        assert!(outcome.status.success(), "{}", outcome.output);
        let problems = outcome.report["problems"].as_array().is_none_or(Vec::is_empty);
        assert!(problems, "{}", outcome.output);
        outcome
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

impl Outcome {
    /// Names of the calls, in order, without runs of the same.
    pub(crate) fn calls(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.trace.iter().filter_map(|line| line["call"].as_str()).collect();
        names.dedup();
        names
    }

    /// The traced calls of one name.
    pub(crate) fn call(&self, name: &str) -> Vec<&Value> {
        self.trace.iter().filter(|line| line["call"] == name).collect()
    }

    pub(crate) fn events(&self, name: &str) -> Vec<&Value> {
        self.trace.iter().filter(|line| line["event"] == name).collect()
    }

    /// Whether some line of the simulated kernel log contains `text`.
    pub(crate) fn logged(&self, text: &str) -> bool {
        self.events("log").iter().any(|line| line["text"].as_str().is_some_and(|line| line.contains(text)))
    }
}

/// The simulation the calling body runs in.
pub(crate) fn kind() -> String {
    std::env::var("GUNYAH_SIM").unwrap()
}

/// The name of the calling test function, as the test harness knows it.
#[macro_export]
macro_rules! test_name {
    () => {{
        fn here() {}
        let path = std::any::type_name_of_val(&here);
        path.strip_suffix("::here").and_then(|path| path.split_once("::")).map_or(path, |(_, name)| name)
    }};
}
