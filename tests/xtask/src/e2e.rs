//! End-to-end tests: guests booted by gvmm in the test bed.
//!
//! A test is a shell script `tests/e2e/cases/GROUP/NAME.sh` that runs in L1 with the helpers of
//! `tests/e2e/lib.sh`; the first line of its leading comment says what it shows. All tests of a group run in
//! one boot of L1, which the group's `group.toml` describes.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::bed::Bed;
use crate::build::Build;
use crate::dist;
use crate::process::{self, progress};
use crate::served::{self, Served};
use crate::setup::{self, Ready};
use crate::summary::Counts;
use crate::workspace::Workspace;

/// The package with the programs that tests run in guests.
const TOOLS_PACKAGE: &str = "e2e";

/// Numbers that make tests longer, handed on to their scripts: the bed is slow, and by default they are small.
const SIZES: [&str; 3] = ["GVMM_TRANSFER_BYTES", "GVMM_LIVES", "GVMM_REQUESTS"];

/// Tests that share one boot of L1.
pub(crate) struct Group {
    name: String,
    bed: BedOptions,
    cases: Vec<Case>,
}

/// `group.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BedOptions {
    /// Virtual CPUs of L1: 1 is quickest, 2 lets vCPUs and workers run in parallel.
    cpus: u32,
    /// Memory of L1 in MiB.
    memory_mib: u32,
    /// Seconds after which the whole group has failed.
    timeout: u64,
    /// Packages below `tests/` whose shared library the tests want at `/bed/lib`.
    #[serde(default)]
    libraries: Vec<String>,
    /// Members of the workspace [`EXAMPLES`] that they want there as well.
    #[serde(default)]
    examples: Vec<String>,
    /// Whether they want Debian's kernel with all drivers, at `/bed/full`.
    #[serde(default)]
    full_kernel: bool,
    /// Modules that L1 loads beside those of every group.
    #[serde(default)]
    modules: Vec<String>,
    /// Devices of L1 that gvmm-device serves on the machine that runs QEMU.
    #[serde(default)]
    served: Vec<served::Description>,
}

struct Case {
    name: String,
    summary: String,
}

/// Reads the tests whose `GROUP/NAME` starts with one of the prefixes, or all without any.
pub(crate) fn find(workspace: &Workspace, prefixes: &[String]) -> Result<Vec<Group>> {
    let mut groups = Vec::new();
    for folder in sorted_entries(&workspace.root.join("tests/e2e/cases"))? {
        let group = Group::read(&folder, prefixes)?;
        if !group.cases.is_empty() {
            groups.push(group);
        }
    }
    Ok(groups)
}

/// Boots of L1 at a time. A boot seldom keeps more than one of the host's processors busy, and two are what
/// the tests' time limits were seen to allow on a machine with two.
const LANES: usize = 2;

/// Runs groups, longest first, each in a boot of its own and two boots at a time.
pub(crate) fn run(groups: &[Group], ready: &Ready, build: &Build, dist: &Path) -> Result<Counts> {
    let mut longest_last: Vec<_> = groups.iter().collect();
    longest_last.sort_by_key(|group| group.cases.len());
    let waiting = Mutex::new(longest_last);
    let lane = || -> Result<Counts> {
        let mut counts = Counts::default();
        loop {
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(group) = waiting.pop() else { return Ok(counts) };
            // With the lock held: preparations share build folders.
            let bed = group.prepare(ready, build, dist)?;
            drop(waiting);
            counts += group.run(&bed);
        }
    };
    std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..LANES).map(|_| scope.spawn(lane)).collect();
        let mut total = Counts::default();
        for lane in lanes {
            total += lane.join().map_err(|_| anyhow::anyhow!("a lane of the test bed panicked"))??;
        }
        Ok(total)
    })
}

impl Group {
    fn read(folder: &Path, prefixes: &[String]) -> Result<Self> {
        let name = file_stem(folder)?;
        let description = folder.join("group.toml");
        let text = std::fs::read_to_string(&description)
            .with_context(|| format!("cannot read {}", description.display()))?;
        let bed = toml::from_str(&text).with_context(|| format!("in {}", description.display()))?;
        let mut cases = Vec::new();
        for file in sorted_entries(folder)? {
            if file.extension().is_none_or(|extension| extension != "sh") {
                continue;
            }
            let case = Case { name: file_stem(&file)?, summary: summary_of(&file)? };
            let full = format!("{name}/{}", case.name);
            if prefixes.is_empty() || prefixes.iter().any(|prefix| full.starts_with(prefix)) {
                cases.push(case);
            }
        }
        Ok(Self { name, bed, cases })
    }

    /// One line for each test, for `--list`.
    pub(crate) fn list(&self) -> impl Iterator<Item = String> {
        self.cases.iter().map(|case| format!("e2e/{}/{}: {}", self.name, case.name, case.summary))
    }

    /// Prepares the group's boot of L1.
    fn prepare<'a>(&self, ready: &'a Ready, build: &Build<'a>, dist: &Path) -> Result<Bed<'a>> {
        progress(format!("booting the test bed for the {} tests of e2e/{}", self.cases.len(), self.name));
        let workspace = build.workspace;
        let mut bed = Bed::new(workspace, ready, &format!("e2e-{}", self.name))?;
        bed.cpus = self.bed.cpus;
        bed.memory_mib = self.bed.memory_mib;
        bed.timeout = Duration::from_secs(self.bed.timeout) + longer_transfers();
        bed.modules.extend_from_slice(&self.bed.modules);
        bed.served = Served::prepare(workspace, &self.bed.served)?;
        bed.add(dist, "gvmm")?;
        add_tools(&bed, build)?;
        add_libraries(&bed, build, &self.bed.libraries)?;
        add_examples(&bed, build, &self.bed.examples)?;
        add_offered(&bed)?;
        if self.bed.full_kernel {
            bed.add(&setup::ensure_full_kernel(workspace)?, "full")?;
        }
        bed.add(&workspace.root.join("tests/e2e/cases").join(&self.name), "cases")?;
        Ok(bed)
    }

    /// Runs the group in one boot, printing a line for each test as it ends.
    fn run(&self, bed: &Bed) -> Counts {
        let names: Vec<_> = self.cases.iter().map(|case| case.name.as_str()).collect();

        let mut results = Vec::new();
        let ended = bed.run(&format!("{}sh /bed/run-cases {}", sizes(), names.join(" ")), |line| {
            if let Some(result) = CaseResult::parse(line) {
                println!("{:>7} e2e/{}/{} ({} s)", result.verdict, self.name, result.name, result.seconds);
                results.push(result);
            }
        });
        if let Err(error) = &ended {
            eprintln!("{error:#}");
        }
        let mut counts = Counts::default();
        for case in &self.cases {
            match results.iter().find(|result| result.name == case.name).map(|result| result.verdict.as_str())
            {
                Some("pass") => counts.passed += 1,
                Some("skip") => counts.skipped += 1,
                Some(_) => counts.failed += 1,
                None => {
                    println!("{:>7} e2e/{}/{} (the test bed ended before it)", "fail", self.name, case.name);
                    counts.failed += 1;
                }
            }
        }
        if let Ok(outcome) = ended {
            for result in results.iter().filter(|result| result.verdict == "fail") {
                show_log(&outcome.results.join(&result.name));
            }
        }
        counts
    }
}

/// What a group may take longer for the bytes that the caller wants transferred: some dozen times that many pass in all, and
/// the bed was seen to pass half a megabyte a second.
fn longer_transfers() -> Duration {
    let bytes = std::env::var(SIZES[0]).ok().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_secs(bytes / 25_000)
}

/// The assignments of the sizes that the caller has set.
fn sizes() -> String {
    let size = |name: &str| {
        let number = std::env::var(name).ok()?.parse::<u64>().ok()?;
        Some(format!("{name}={number} "))
    };
    SIZES.into_iter().filter_map(size).collect()
}

/// A line of `run-cases`: `@result NAME VERDICT SECONDS`.
struct CaseResult {
    name: String,
    verdict: String,
    seconds: String,
}

impl CaseResult {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_prefix("@result ")?.split_whitespace().map(str::to_owned);
        Some(Self { name: words.next()?, verdict: words.next()?, seconds: words.next()? })
    }
}

/// Puts the helpers of the tests, and the programs they run in guests, onto `/bed`.
pub(crate) fn add_tools(bed: &Bed, build: &Build) -> Result<()> {
    let workspace = build.workspace;
    let folder = workspace.root.join("tests/e2e");
    bed.add(&folder.join("lib.sh"), "lib.sh")?;
    bed.add(&folder.join("run-cases"), "run-cases")?;
    bed.add(&folder.join("bed/run-test"), "run-test")?;
    let Some(package) = workspace.members_below("tests").find(|package| package.name == TOOLS_PACKAGE) else {
        bail!("package {TOOLS_PACKAGE} is not a member of the workspace");
    };
    let names: Vec<_> = package.targets_of("bin").collect();
    for program in build.static_programs(TOOLS_PACKAGE, &names)? {
        bed.add(&program, &format!("tools/{}", file_stem(&program)?))?;
    }
    Ok(())
}

/// Files that a caller may have beyond what Debian 12 has: the variable that names one, and its place on `/bed`. A kernel with
/// `CONFIG_DMA_RESTRICTED_POOL` for protected guests, and a newer passt for arm64.
const OFFERED: [(&str, &str); 2] = [("GVMM_PROTECTED_KERNEL", "protected/Image"), ("GVMM_PASST", "passt")];

/// Puts the files of [`OFFERED`] that the caller has onto `/bed`.
fn add_offered(bed: &Bed) -> Result<()> {
    for (variable, place) in OFFERED {
        if let Some(file) = std::env::var_os(variable) {
            bed.add(Path::new(&file), place).context(variable)?;
        }
    }
    Ok(())
}

/// Puts the shared libraries of packages below `tests/` at `/bed/lib`.
pub(crate) fn add_libraries(bed: &Bed, build: &Build, names: &[String]) -> Result<()> {
    let mut libraries = Vec::new();
    for name in names {
        let mut packages = build.workspace.members_below("tests");
        let library = packages
            .find(|package| package.name == *name)
            .and_then(|package| package.targets_of("cdylib").next())
            .with_context(|| format!("no package {name} below tests/ builds a shared library"))?;
        libraries.push(library);
    }
    if !names.is_empty() {
        let mut command = build.cargo("build");
        // Beside what is built already: alone they would get their dependencies with fewer features, built anew.
        dist::select(build.workspace, &mut command);
        process::run(command.args(names.iter().flat_map(|name| ["--package", name])))?;
    }
    libraries.into_iter().try_for_each(|library| add_library(bed, &build.output(), library))
}

/// The workspace of plugins that know gvmm by its plugin interface alone.
const EXAMPLES: &str = "docs/plugins/examples";

/// Puts the shared libraries of example plugins at `/bed/lib`; each has the name of its package. They are built without
/// optimisation, which takes less time than the tests would gain by it.
fn add_examples(bed: &Bed, build: &Build, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut command = build.debug_cargo("build");
    command.current_dir(build.workspace.root.join(EXAMPLES)).env("CARGO_TARGET_DIR", &build.workspace.target);
    process::run(command.args(names.iter().flat_map(|name| ["--package", name])))?;
    names.iter().try_for_each(|name| add_library(bed, &build.debug_output(), name))
}

fn add_library(bed: &Bed, output: &Path, name: &str) -> Result<()> {
    let file = format!("lib{name}.so");
    bed.add(&output.join(&file), &format!("lib/{file}"))
}

/// What a failed test said, with the console of its last guest.
fn show_log(folder: &Path) {
    const LINES: usize = 60;
    for name in ["log", "console.log"] {
        let file = folder.join(name);
        let Ok(bytes) = std::fs::read(&file) else { continue };
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        println!("--- {} (last {LINES} lines)", file.display());
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            println!("    {}", line.trim_end_matches('\r'));
        }
    }
}

fn summary_of(file: &Path) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let line = text.lines().find_map(|line| line.strip_prefix("# "));
    Ok(line
        .with_context(|| format!("{} does not say what it shows in a comment", file.display()))?
        .to_owned())
}

fn sorted_entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn file_stem(path: &Path) -> Result<String> {
    let stem = path.file_stem().and_then(|stem| stem.to_str());
    Ok(stem.with_context(|| format!("odd file name {}", path.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_says_what_it_shows_and_every_group_describes_its_bed() {
        let workspace = Workspace::find().unwrap();
        let groups = find(&workspace, &[]).unwrap();
        assert!(!groups.is_empty());
        for line in groups.iter().flat_map(Group::list) {
            let (_, summary) = line.split_once(": ").unwrap();
            assert!(!summary.is_empty(), "{line}");
        }
    }

    #[test]
    fn only_the_tests_asked_for_are_found() {
        let workspace = Workspace::find().unwrap();
        assert!(find(&workspace, &["no-such-group".to_owned()]).unwrap().is_empty());
        let all = find(&workspace, &[]).unwrap();
        let first = format!("{}/{}", all[0].name, all[0].cases[0].name);
        let one = find(&workspace, &[first]).unwrap();
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn result_lines_are_told_from_other_output() {
        let result = CaseResult::parse("@result boots pass 4").unwrap();
        assert_eq!((result.name.as_str(), result.verdict.as_str()), ("boots", "pass"));
        assert!(CaseResult::parse("the guest says @result boots pass 4").is_none());
        assert!(CaseResult::parse("@result boots").is_none());
    }
}
