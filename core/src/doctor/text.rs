//! The report for people.

use std::fmt::{self, Display, Formatter};

use super::report::{Host, Kind, Report, Runs};
use crate::host::memlock::LockLimit;
use crate::host::pieces::TransparentHugePages;
use crate::host::security::SeLinux;
use crate::hypervisor::gunyah::probe::Driver;

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "VMs can run on this machine: {}", if self.can_run { "yes" } else { "no" })?;
        writeln!(f)?;
        writeln!(f, "Gunyah")?;
        line(f, "driver", &self.gunyah.detail)?;
        if let Some(driver) = &self.gunyah.driver {
            write_capabilities(f, driver)?;
            writeln!(f, "\nKinds of VM under Gunyah")?;
        }
        for kind in &self.gunyah.kinds {
            write_kind(f, kind)?;
        }
        writeln!(f, "\nKVM")?;
        line(f, "state", self.kvm.detail.as_deref().unwrap_or("usable"))?;
        writeln!(f, "\nHost")?;
        write_host(f, &self.host)?;
        if !self.advice.is_empty() {
            writeln!(f, "\nWhat to do")?;
        }
        for advice in &self.advice {
            writeln!(f, "  - {advice}")?;
        }
        Ok(())
    }
}

fn line(f: &mut Formatter<'_>, name: &str, value: &str) -> fmt::Result {
    writeln!(f, "  {name:<16}{value}")
}

fn write_kind(f: &mut Formatter<'_>, kind: &Kind) -> fmt::Result {
    let runs = match kind.runs {
        Runs::Yes => "runs",
        Runs::Depends => "may run",
        Runs::No => "does not run",
    };
    let options = match kind.options {
        "" => String::new(),
        options => format!(" ({options})"),
    };
    line(f, runs, &format!("{}{options}: {}", kind.name, kind.reason))
}

/// What the driver can and cannot do.
fn write_capabilities(f: &mut Formatter<'_>, driver: &Driver) -> fmt::Result {
    let all = [
        (driver.lend, "lend memory"),
        (driver.firmware, "start firmware"),
        (driver.reclaim, "take memory back"),
        (driver.cma, "give contiguous memory"),
        (driver.auth, "authenticate"),
        (driver.timer_wakeup, "leave timer wake-ups out"),
    ];
    for (wanted, title) in [(true, "it can"), (false, "it cannot")] {
        let names: Vec<_> = all.iter().filter(|(has, _)| *has == wanted).map(|(_, name)| *name).collect();
        if !names.is_empty() {
            line(f, title, &names.join(", "))?;
        }
    }
    Ok(())
}

fn write_host(f: &mut Formatter<'_>, host: &Host) -> fmt::Result {
    line(f, "kernel", &format!("{} on {}", host.kernel, host.machine))?;
    line(f, "cores", &host.cores.map_or("unknown".to_owned(), |cores| cores.to_string()))?;
    let selinux = match host.selinux {
        SeLinux::Off => "not in use",
        SeLinux::Permissive => "permissive",
        SeLinux::Enforcing => "enforcing",
    };
    line(f, "SELinux", selinux)?;
    line(f, "lockable memory", &host.memlock.as_ref().map_or("unknown".to_owned(), lockable))?;
    let free = match &host.free_memory {
        Some(pieces) => format!(
            "{} MiB, {} MiB of them in huge pages, largest piece {} KiB",
            pieces.free >> 20,
            pieces.huge >> 20,
            pieces.largest >> 10
        ),
        None => "unknown: root alone may ask".to_owned(),
    };
    line(f, "free memory", &free)?;
    let huge_pages = match host.transparent_huge_pages {
        Some(TransparentHugePages::Always) => "always",
        Some(TransparentHugePages::Madvise) => "for programs that ask, as gvmm does",
        Some(TransparentHugePages::Never) => "never",
        None => "not in this kernel",
    };
    line(f, "huge pages", huge_pages)
}

fn lockable(limit: &LockLimit) -> String {
    if limit.exempt {
        return "unlimited for this process".to_owned();
    }
    let bytes =
        |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes / 1024));
    if limit.soft == limit.hard {
        return bytes(limit.soft);
    }
    format!("{}, which gvmm may raise to {}", bytes(limit.soft), bytes(limit.hard))
}
