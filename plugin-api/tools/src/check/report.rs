//! How the tests went.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gvmm_plugin_api::host::Manifest;
use serde::{Deserialize, Serialize};

use super::suite::{BEFORE_ALL, Test};

/// How one test went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "detail", rename_all = "lowercase")]
pub(super) enum Verdict {
    /// The plugin does what is asked of it.
    Pass,
    /// It does not, with the reason.
    Fail(String),
    /// The question makes no sense for it, with the reason.
    Skip(String),
}

/// A test with its verdict.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    name: &'static str,
    about: &'static str,
    #[serde(flatten)]
    verdict: Verdict,
    seconds: f64,
}

/// All tests of a plugin.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<Manifest>,
    passed: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
    tests: Vec<Outcome>,
}

impl Outcome {
    pub(super) fn new(test: &Test, verdict: Verdict, time: Duration) -> Self {
        Self { name: test.name, about: test.about, verdict, seconds: time.as_secs_f64() }
    }

    /// A line for people.
    pub(super) fn line(&self) -> String {
        let (word, detail) = match &self.verdict {
            Verdict::Pass => ("pass", self.about),
            Verdict::Fail(why) => ("FAIL", why.as_str()),
            Verdict::Skip(why) => ("skip", why.as_str()),
        };
        format!("{word}  {:<16} {:>5.1} s  {}\n", self.name, self.seconds, detail)
    }
}

impl Report {
    pub(super) fn new(file: &Path, plugin: Option<Manifest>) -> Self {
        let file = file.to_owned();
        Self { file, plugin, passed: 0, failed: 0, skipped: 0, seconds: 0.0, tests: Vec::new() }
    }

    pub(super) fn add(&mut self, outcome: Outcome) {
        match outcome.verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Fail(_) => self.failed += 1,
            Verdict::Skip(_) => self.skipped += 1,
        }
        self.tests.push(outcome);
    }

    pub(super) fn end(&mut self, time: Duration) {
        self.seconds = time.as_secs_f64();
    }

    /// The test whose failure leaves nothing to test.
    pub(super) fn cannot_be_used(&self) -> Option<&'static str> {
        let failed = |outcome: &&Outcome| matches!(outcome.verdict, Verdict::Fail(_));
        let failed = self.tests.iter().filter(failed).find(|outcome| BEFORE_ALL.contains(&outcome.name));
        failed.map(|outcome| outcome.name)
    }

    pub(super) fn good(&self) -> bool {
        self.failed == 0
    }

    /// The last line for people.
    pub(super) fn summary(&self) -> String {
        let name = self.plugin.as_ref().map_or_else(|| self.file.display().to_string(), |p| p.name.clone());
        format!(
            "{name}: {} tests passed, {} failed, {} skipped in {:.1} s\n",
            self.passed, self.failed, self.skipped, self.seconds
        )
    }
}
