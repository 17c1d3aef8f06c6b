//! `cargo xtask bench`: gvmm and other VMMs on the same work, in turn, in one boot of the test bed.
//!
//! The test bed is emulated and its speed drifts, so the ratios say more than the figures, and counts (exits,
//! faults, memory) more than times.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::bed::{Bed, command_line};
use crate::build::{Build, TARGET};
use crate::process::progress;
use crate::workspace::Workspace;
use crate::{dist, e2e, images, setup};

/// The VMM that the others are compared with.
const OURS: &str = "gvmm";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each VMM runs
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Seconds of each of the six loads on the disk
    #[arg(long, default_value_t = 2)]
    seconds: u32,
    /// VMMs to run: gvmm, gvmm_pci (the disk on PCI), qemu
    #[arg(long, value_delimiter = ',', default_values = ["gvmm", "gvmm_pci", "qemu"])]
    vmms: Vec<String>,
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let ready = setup::ensure(workspace)?;
    let build = Build { workspace, target: Some(TARGET), cross: &ready.cross };
    let dist = dist::make(&build)?;
    let mut bed = Bed::new(workspace, &ready, "bench")?;
    bed.cpus = 2;
    // One guest: its six loads and, generously, its start.
    let run_seconds = options.seconds * 6 + 60;
    let runs = options.rounds * u32::try_from(options.vmms.len())?;
    bed.timeout = Duration::from_secs(u64::from(60 + runs * run_seconds));
    bed.add(&dist, "gvmm")?;
    e2e::add_tools(&bed, &build)?;
    bed.add(&images::bed_file(workspace, "bench"), "bench")?;
    progress(format!("{} rounds of {}", options.rounds, options.vmms.join(", ")));

    let (rounds, seconds) = (options.rounds.to_string(), options.seconds.to_string());
    let words = ["sh", "/bed/bench", &rounds, &seconds];
    let script = command_line(words.into_iter().chain(options.vmms.iter().map(String::as_str)));
    let mut samples = Samples::default();
    let outcome = bed.run(&script, |line| {
        println!("{line}");
        samples.take(line);
    })?;
    if outcome.status != Some(0) {
        bail!("the measurement failed; its console is in {}", outcome.console.display());
    }
    print!("{}", samples.table(&options.vmms));
    Ok(ExitCode::SUCCESS)
}

/// What was measured: by name, then by VMM.
#[derive(Default)]
struct Samples(BTreeMap<String, BTreeMap<String, Vec<f64>>>);

impl Samples {
    /// Takes a line `@bench VMM NAME VALUE`; others are no samples.
    fn take(&mut self, line: &str) {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["@bench", vmm, name, value] = words[..]
            && let Ok(value) = value.parse()
        {
            self.0.entry(name.to_owned()).or_default().entry(vmm.to_owned()).or_default().push(value);
        }
    }

    /// Medians, and the ratio of ours to each other VMM's, as a Markdown table.
    fn table(&self, vmms: &[String]) -> String {
        let others: Vec<_> = vmms.iter().filter(|vmm| *vmm != OURS).collect();
        let ratios = others.iter().map(|vmm| format!("{OURS} / {vmm}"));
        let head: Vec<_> =
            ["median".to_owned()].into_iter().chain(vmms.iter().cloned()).chain(ratios).collect();
        let mut table = format!("\n| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
        for (name, by_vmm) in &self.0 {
            let median_of = |vmm: &str| by_vmm.get(vmm).and_then(|values| median(values));
            let medians =
                vmms.iter().map(|vmm| median_of(vmm).map_or("-".to_owned(), |value| value.to_string()));
            let ratios = others.iter().map(|vmm| match (median_of(OURS), median_of(vmm)) {
                (Some(ours), Some(theirs)) if theirs != 0.0 => format!("{:.2}", ours / theirs),
                _ => "-".to_owned(),
            });
            let row: Vec<_> = [name.replace('_', " ")].into_iter().chain(medians).chain(ratios).collect();
            table += &format!("| {} |\n", row.join(" | "));
        }
        table
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted.get(middle).copied()
    } else {
        Some((sorted.get(middle.checked_sub(1)?)? + sorted.get(middle)?) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn the_table_has_medians_and_ratios() {
        let mut samples = Samples::default();
        for line in
            ["@bench gvmm exits 100", "noise", "@bench qemu exits 200", "@bench qemu faults 7", "@bench x"]
        {
            samples.take(line);
        }
        let table = samples.table(&["gvmm".to_owned(), "qemu".to_owned()]);
        assert!(table.contains("| median | gvmm | qemu | gvmm / qemu |"), "{table}");
        assert!(table.contains("| exits | 100 | 200 | 0.50 |"), "{table}");
        assert!(table.contains("| faults | - | 7 | - |"), "{table}");
    }
}
