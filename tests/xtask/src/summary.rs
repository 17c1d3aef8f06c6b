//! Counts of tests, read from what cargo's test runners print.

use std::fmt;
use std::ops::AddAssign;

/// How tests ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

/// Reads the line that sums up results of `cargo test`: `test result: ...`.
pub(crate) fn of_cargo_test(line: &str) -> Option<Counts> {
    line.strip_prefix("test result: ").map(counts_in)
}

/// Reads the line that sums up results of nextest: `Summary [...] ...`. Failed tests are shown with their output,
/// which may hold summaries of test runs they made.
pub(crate) fn of_nextest(line: &str) -> Option<Counts> {
    let tail = line.trim_start().strip_prefix("Summary [")?.split_once("run: ")?.1;
    Some(counts_in(tail))
}

fn counts_in(tail: &str) -> Counts {
    let mut counts = Counts::default();
    let mut number = 0;
    for word in tail.split([' ', ',', ';', '.', '(', ')']).filter(|word| !word.is_empty()) {
        match word {
            "passed" => counts.passed += number,
            "failed" | "timed" | "exec" => counts.failed += number,
            "skipped" | "ignored" => counts.skipped += number,
            _ => number = word.parse().unwrap_or(0),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Option<Counts> {
        Some(Counts { passed, failed, skipped })
    }

    #[test]
    fn reads_the_summary_of_cargo_test() {
        let line = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s";
        assert_eq!(of_cargo_test(line), counts(3, 2, 1));
    }

    #[test]
    fn reads_the_summary_of_nextest() {
        assert_eq!(of_nextest("     Summary [   0.013s] 5 tests run: 5 passed, 0 skipped"), counts(5, 0, 0));
        let line =
            "     Summary [   1.2s] 7/9 tests run: 4 passed (1 slow), 2 failed, 1 timed out, 3 skipped";
        assert_eq!(of_nextest(line), counts(4, 3, 3));
    }

    #[test]
    fn other_lines_are_no_summary() {
        assert_eq!(of_cargo_test("running 3 tests"), None);
        assert_eq!(of_cargo_test("5 passed"), None);
        assert_eq!(of_nextest("5 passed"), None);
    }

    #[test]
    fn runs_inside_a_failed_test_are_not_counted() {
        assert_eq!(of_nextest("    test result: FAILED. 0 passed; 1 failed"), None);
        assert_eq!(of_cargo_test("    test result: FAILED. 0 passed; 1 failed"), None);
    }

    #[test]
    fn the_closing_line_names_skipped_tests_only_if_there_are_any() {
        let mut total = Counts { passed: 1, failed: 0, skipped: 0 };
        assert_eq!(total.to_string(), "1 passed, 0 failed");
        total += Counts { passed: 1, failed: 2, skipped: 3 };
        assert_eq!(total.to_string(), "2 passed, 2 failed, 3 skipped");
    }
}
