//! Measures a VMM from outside, the same way for every VMM: time to a text on the guest's console, the exits that KVM
//! counted so far, and its memory when it has settled; then what each piece of work costs that the guest announces by
//! `@work` and ends by `@worked NAME UNIT AMOUNT`.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::{SysconfVar, sysconf};

/// KVM's counters of all machines alive, one file each (Linux, `Documentation/virt/kvm/`).
const KVM_COUNTERS: &str = "/sys/kernel/debug/kvm";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Text on the console to measure at, as soon as its last character is there
    #[arg(long)]
    at: String,
    /// Seconds from then to the look at its memory, for which the guest is to keep silent
    #[arg(long, default_value_t = 0)]
    settle: u64,
    /// Where to write the console
    #[arg(long)]
    log: PathBuf,
    /// Command whose standard output is the guest's console
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Prints `@measure NAME VALUE` lines, then waits for the command's end.
pub(crate) fn run(options: &Options) -> Result<()> {
    let (program, arguments) = options.command.split_first().context("no command")?;
    let mut log =
        File::create(&options.log).with_context(|| format!("cannot write {}", options.log.display()))?;
    let started = Instant::now();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut console = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut line = Vec::new();
    let mut measured = false;
    let mut before = Usage::default();
    let mut character = [0];
    while console.read(&mut character)? > 0 {
        line.extend(character);
        if !measured && line.ends_with(options.at.as_bytes()) {
            println!("@measure start_ms {}", started.elapsed().as_millis());
            print_exits()?;
            std::thread::sleep(Duration::from_secs(options.settle));
            print_memory(child.id())?;
            measured = true;
        }
        if character != *b"\n" {
            continue;
        }
        match Mark::parse(&String::from_utf8_lossy(&line)) {
            Some(Mark::Begin) => before = Usage::of(child.id())?,
            Some(Mark::End { name, unit, amount }) => {
                let used = Usage::of(child.id())?;
                let cpu_ms = (used.cpu_ms - before.cpu_ms) / amount;
                let exits = used.exits.saturating_sub(before.exits) as f64 / amount;
                println!("@measure {name}_cpu_ms_per_{unit} {cpu_ms:.3}");
                println!("@measure {name}_exits_per_{unit} {exits:.2}");
            }
            None => {}
        }
        log.write_all(&line)?;
        line.clear();
    }
    log.write_all(&line)?;
    let status = child.wait()?;
    ensure!(measured, "the console never showed {:?} ({status})", options.at);
    if !status.success() {
        bail!("{program} failed ({status})");
    }
    Ok(())
}

fn print_exits() -> Result<()> {
    for (name, file) in [("exits", "exits"), ("user_exits", "mmio_exit_user")] {
        println!("@measure {name} {}", kvm_counter(file)?);
    }
    Ok(())
}

fn print_memory(process: u32) -> Result<()> {
    let smaps = format!("/proc/{process}/smaps");
    let text = std::fs::read_to_string(&smaps).with_context(|| format!("cannot read {smaps}"))?;
    println!("@measure own_memory_kb {}", own_memory_kb(&text)?);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    println!("@measure minor_faults {}", minor_faults(&stat)?);
    Ok(())
}

fn kvm_counter(file: &str) -> Result<u64> {
    let path = Path::new(KVM_COUNTERS).join(file);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} is no count", path.display()))
}

/// A line by which the guest frames a piece of work.
#[derive(Debug, PartialEq)]
enum Mark {
    Begin,
    /// So many units were done.
    End {
        name: String,
        unit: String,
        amount: f64,
    },
}

impl Mark {
    fn parse(line: &str) -> Option<Self> {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["@work"] => Some(Self::Begin),
            ["@worked", name, unit, amount] => {
                let amount = amount.parse().ok().filter(|amount| *amount > 0.0)?;
                Some(Self::End { name: name.to_owned(), unit: unit.to_owned(), amount })
            }
            _ => None,
        }
    }
}

/// What a process has used up so far.
#[derive(Debug, Default)]
struct Usage {
    /// In milliseconds, of all threads, the guest's code included.
    cpu_ms: f64,
    exits: u64,
}

impl Usage {
    fn of(process: u32) -> Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("the system has no clock tick")?;
        let cpu_ms = cpu_ticks(&stat)? as f64 * 1e3 / ticks_per_second as f64;
        Ok(Self { cpu_ms, exits: kvm_counter("exits")? })
    }
}

/// Fields 14 and 15 of `/proc/PID/stat` (proc(5)).
fn cpu_ticks(stat: &str) -> Result<u64> {
    Ok(stat_field(stat, 14)? + stat_field(stat, 15)?)
}

/// Resident memory of a process without its largest mapping, which is the guest's RAM.
fn own_memory_kb(smaps: &str) -> Result<u64> {
    let value = |line: &str, key: &str| -> Option<u64> {
        line.strip_prefix(key)?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let sizes = smaps.lines().filter_map(|line| value(line, "Size:"));
    let resident = smaps.lines().filter_map(|line| value(line, "Rss:"));
    let mappings: Vec<(u64, u64)> = sizes.zip(resident).collect();
    let ram = mappings.iter().max().context("a process without mappings")?;
    Ok(mappings.iter().map(|mapping| mapping.1).sum::<u64>() - ram.1)
}

/// Field 10 of `/proc/PID/stat` (proc(5)).
fn minor_faults(stat: &str) -> Result<u64> {
    stat_field(stat, 10)
}

/// A field of `/proc/PID/stat` by its number in proc(5), from 3 on; the name in field 2 may hold spaces.
fn stat_field(stat: &str, number: usize) -> Result<u64> {
    let after_name = stat.rsplit_once(')').context("odd /proc/PID/stat")?.1;
    let field = after_name.split_whitespace().nth(number - 3).context("short /proc/PID/stat")?;
    field.parse().context("odd /proc/PID/stat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_memory_leaves_out_the_largest_mapping() {
        let smaps = "5500-5600 r-xp\nSize:               1024 kB\nRss:                 700 kB\nPss: 1 kB\n\
                     7f00-7f10 rw-p\nSize:             262144 kB\nRss:              100000 kB\n\
                     7fff-7fff rw-p\nSize:                132 kB\nRss:                  12 kB\n";
        assert_eq!(own_memory_kb(smaps).unwrap(), 712);
        assert!(own_memory_kb("").is_err());
    }

    #[test]
    fn faults_are_found_behind_a_name_with_spaces() {
        let stat = "42 (a name) x) S 1 42 42 0 -1 4194304 1234 0 5 0 10 3";
        assert_eq!(minor_faults(stat).unwrap(), 1234);
        assert_eq!(cpu_ticks(stat).unwrap(), 13);
    }

    #[test]
    fn marks_of_work_need_an_amount() {
        assert_eq!(Mark::parse("@work\r\n"), Some(Mark::Begin));
        let end = Mark::End { name: "network_send".into(), unit: "gb".into(), amount: 0.02 };
        assert_eq!(Mark::parse("@worked network_send gb 0.02\r\n"), Some(end));
        assert_eq!(Mark::parse("@worked network_send gb 0"), None);
        assert_eq!(Mark::parse("@worked network_send gb"), None);
    }
}
