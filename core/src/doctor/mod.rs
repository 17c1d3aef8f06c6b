//! `gvmm doctor`: what this machine can run, and why not.
//!
//! [`findings`] looks, [`report`] draws the conclusions from what was found alone, `text` writes them down. Nothing
//! is changed and no VM is started: the Gunyah driver is asked for an empty VM, which costs it nothing.

pub mod findings;
pub mod report;
mod text;

use std::io::Write;

use crate::exit_code::Code;
use findings::Findings;
use report::Report;

/// Writes the report to standard output. The code says whether any VM can run here.
pub fn run(json: bool) -> Code {
    let report = Report::from(&Findings::look());
    let text = if json { to_json(&report) } else { report.to_string() };
    // A reader that went away has read enough.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if report.can_run { Code::PowerOff } else { Code::StartFailed }
}

fn to_json(report: &Report) -> String {
    match serde_json::to_string_pretty(report) {
        Ok(json) => json + "\n",
        Err(error) => format!("{{\"error\": \"the report cannot be written as JSON: {error}\"}}\n"),
    }
}

#[cfg(test)]
mod tests;
