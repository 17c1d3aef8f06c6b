//! `--stats`: what happened, as JSON, written when gvmm ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::bus::AccessCount;
use crate::machine::devices::DeviceReport;
use crate::machine::vcpu::ExitCounts;

/// The whole report.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    /// Name of the accelerator.
    pub accelerator: String,
    /// How the last life of the VM ended.
    pub end: String,
    /// Lives of the VM: one more than the resets.
    pub lives: u32,
    /// Seconds from the start of gvmm to the first entry into the guest.
    pub seconds_to_first_instruction: f64,
    /// Seconds from the first entry into the guest to the end.
    pub seconds_running: f64,
    /// Exits to user space.
    pub exits: Exits,
    /// Devices by id.
    pub devices: BTreeMap<String, DeviceStats>,
}

/// Exits to user space by reason.
#[derive(Debug, Default, Serialize)]
pub struct Exits {
    /// All of them.
    pub total: u64,
    /// Register reads.
    pub mmio_read: u64,
    /// Register writes.
    pub mmio_write: u64,
    /// Kicks and signals.
    pub interrupted: u64,
    /// What the accelerator handled by itself.
    pub handled: BTreeMap<String, u64>,
}

/// One device.
#[derive(Debug, Default, Serialize)]
pub struct DeviceStats {
    /// Name of its plugin.
    pub plugin: String,
    /// Whether it failed.
    pub failed: bool,
    /// Register reads that reached user space.
    pub register_reads: u64,
    /// Register writes that reached user space.
    pub register_writes: u64,
    /// The device's own counters.
    pub counters: BTreeMap<String, u64>,
}

impl Stats {
    /// Takes the exits of a life.
    pub fn add_exits(&mut self, counts: &ExitCounts) {
        self.exits.total += counts.total();
        self.exits.mmio_read += counts.mmio_reads;
        self.exits.mmio_write += counts.mmio_writes;
        self.exits.interrupted += counts.interrupted;
        for (name, count) in &counts.handled {
            *self.exits.handled.entry((*name).to_owned()).or_default() += count;
        }
    }

    /// Takes what the devices did.
    pub fn set_devices(&mut self, reports: Vec<DeviceReport>, accesses: &[AccessCount]) {
        for report in reports {
            let of_device = || accesses.iter().filter(|access| access.device == report.id);
            let stats = DeviceStats {
                plugin: report.plugin.clone(),
                failed: report.failed,
                register_reads: of_device().map(|access| access.reads).sum(),
                register_writes: of_device().map(|access| access.writes).sum(),
                counters: report.metrics.iter().map(|m| (m.name.clone(), m.value)).collect(),
            };
            self.devices.insert(report.id, stats);
        }
    }

    /// Takes the times.
    pub fn set_times(&mut self, to_first_instruction: Duration, running: Duration) {
        self.seconds_to_first_instruction = to_first_instruction.as_secs_f64();
        self.seconds_running = running.as_secs_f64();
    }
}

/// Where the report goes.
#[derive(Debug)]
pub struct StatsFile {
    path: PathBuf,
    file: File,
}

impl StatsFile {
    /// Opens the file before anything is started, so that no run is wasted on a path that cannot be written. What it
    /// holds stays until there is a new report.
    pub fn open(path: &Path) -> Result<Self, String> {
        let file = File::options().write(true).create(true).truncate(false).open(path);
        Ok(Self { path: path.to_owned(), file: file.map_err(|error| failed(path, &error))? })
    }

    /// Writes the report.
    pub fn write(mut self, stats: &Stats) -> Result<(), String> {
        let mut json = serde_json::to_string_pretty(stats).map_err(|error| failed(&self.path, &error))?;
        json.push('\n');
        // A pipe or a terminal has no length.
        if self.file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            self.file.set_len(0).map_err(|error| failed(&self.path, &error))?;
        }
        self.file.write_all(json.as_bytes()).map_err(|error| failed(&self.path, &error))
    }
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("statistics file {}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_written_is_refused_at_once() {
        let error = StatsFile::open(Path::new("/proc/none/stats.json")).unwrap_err();
        assert_eq!(error, "statistics file /proc/none/stats.json: No such file or directory (os error 2)");
    }

    #[test]
    fn a_new_report_takes_the_place_of_an_older_and_longer_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stats.json");
        std::fs::write(&path, "x".repeat(100_000)).unwrap();
        let file = StatsFile::open(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 100_000);
        file.write(&Stats::default()).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(report["lives"], 0);
    }
}
