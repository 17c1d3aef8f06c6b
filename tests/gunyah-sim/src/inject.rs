//! Faults the environment asks for, and the counters that decide when each strikes.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::abi::Request;
use crate::errno::Errno;

/// Calls that can be counted besides the requests.
pub(crate) const OPEN: &str = "OPEN";
/// Mapping a vCPU's run page.
pub(crate) const MMAP: &str = "MMAP";

/// Which occurrences of a call a rule means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Nth(u64),
    From(u64),
}

impl Which {
    /// `N`, `N+` or `*`.
    fn parse(text: &str) -> Option<Which> {
        match text.strip_suffix('+') {
            _ if text == "*" => Some(Which::From(1)),
            Some(first) => first.parse().ok().filter(|nth| *nth > 0).map(Which::From),
            None => text.parse().ok().filter(|nth| *nth > 0).map(Which::Nth),
        }
    }

    fn covers(self, count: u64) -> bool {
        match self {
            Which::Nth(nth) => count == nth,
            Which::From(first) => count >= first,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CallRule<T> {
    call: String,
    which: Which,
    effect: T,
}

/// A page fault to report instead of running (B and C).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PageFault {
    pub(crate) addr: u64,
    pub(crate) errno: Errno,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageFaultRule {
    fault: PageFault,
    /// Reports of it; `None` is without end.
    times: Option<u64>,
    /// RUN calls of vCPU 0 that pass first.
    after: u64,
}

/// Everything `GUNYAH_SIM_INJECT` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    failures: Vec<CallRule<Errno>>,
    signals: Vec<CallRule<i32>>,
    /// On the way out of VCPU_RUN, with the exit already described.
    late_signals: Vec<(Which, i32)>,
    page_faults: Vec<PageFaultRule>,
    refused_starts: u64,
    busy_at_shutdown: u64,
    pub(crate) lost_exit: bool,
}

/// Guest address of an injected page fault that names none.
const DEFAULT_FAULT: u64 = 0x8010_0000;

impl Plan {
    /// Parses a comma-separated list; README.md describes each word.
    pub(crate) fn parse(text: &str) -> Result<Plan, String> {
        let mut plan = Plan::default();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let parts: Vec<&str> = value.split(':').collect();
            let parsed = match (name, parts.as_slice()) {
                ("fail", [call, which, errno]) => {
                    call_rule(call, which, Errno::from_name(errno)).map(|rule| plan.failures.push(rule))
                }
                ("signal", [call, which, signal]) => {
                    call_rule(call, which, signal_number(signal)).map(|rule| plan.signals.push(rule))
                }
                ("late-signal", [which, signal]) => {
                    Which::parse(which).zip(signal_number(signal)).map(|rule| plan.late_signals.push(rule))
                }
                ("page-fault", parts) => page_fault(parts).map(|rule| plan.page_faults.push(rule)),
                ("refuse-start", [count]) => count.parse().ok().map(|count| plan.refused_starts = count),
                ("busy-at-shutdown", [count]) => {
                    count.parse().ok().map(|count| plan.busy_at_shutdown = count)
                }
                ("lost-exit", [""]) => {
                    plan.lost_exit = true;
                    Some(())
                }
                _ => None,
            };
            parsed.ok_or_else(|| format!("{word:?} is not an injection; see tests/gunyah-sim/README.md"))?;
        }
        Ok(plan)
    }
}

fn call_rule<T>(call: &str, which: &str, effect: Option<T>) -> Option<CallRule<T>> {
    let known = Request::is_name(call) || call == OPEN || call == MMAP;
    let (which, effect) = Which::parse(which).zip(effect).filter(|_| known)?;
    Some(CallRule { call: call.to_owned(), which, effect })
}

fn signal_number(name: &str) -> Option<i32> {
    [
        ("SIGHUP", libc::SIGHUP),
        ("SIGINT", libc::SIGINT),
        ("SIGTERM", libc::SIGTERM),
        ("SIGUSR1", libc::SIGUSR1),
        ("SIGUSR2", libc::SIGUSR2),
        ("SIGQUIT", libc::SIGQUIT),
        ("SIGWINCH", libc::SIGWINCH),
        ("SIGRTMIN", libc::SIGRTMIN()),
    ]
    .into_iter()
    .find_map(|(known, number)| (known == name).then_some(number))
}

/// `ERRNO:TIMES[:ADDRESS[:AFTER]]`.
fn page_fault(parts: &[&str]) -> Option<PageFaultRule> {
    let errno = Errno::from_name(parts.first()?)?;
    let times = match *parts.get(1)? {
        "always" => None,
        count => Some(count.parse().ok()?),
    };
    let addr = match parts.get(2) {
        Some(text) => u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()?,
        None => DEFAULT_FAULT,
    };
    let after = match parts.get(3) {
        Some(text) => text.parse().ok()?,
        None => 0,
    };
    (parts.len() <= 4).then_some(PageFaultRule { fault: PageFault { addr, errno }, times, after })
}

#[derive(Default)]
struct Counters {
    calls: HashMap<String, u64>,
    starts: u64,
    boot_runs: u64,
    exits: u64,
    page_faults: Vec<u64>,
}

/// What an injection does to one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) signal: Option<i32>,
    pub(crate) errno: Option<Errno>,
}

/// A plan with its counters; one for the process.
pub(crate) struct Injector {
    plan: Plan,
    counters: Mutex<Counters>,
}

impl Injector {
    pub(crate) fn new(plan: Plan) -> Injector {
        let counters = Counters { page_faults: vec![0; plan.page_faults.len()], ..Counters::default() };
        Injector { plan, counters: Mutex::new(counters) }
    }

    fn counters(&self) -> std::sync::MutexGuard<'_, Counters> {
        // A panic of another thread leaves plain numbers, which stay usable.
        self.counters.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Counts one call and tells what strikes it.
    pub(crate) fn strike(&self, call: &str) -> Strike {
        let mut counters = self.counters();
        let count = counters.calls.entry(call.to_owned()).or_default();
        *count += 1;
        let count = *count;
        let hit = |rule_call: &str, which: Which| rule_call == call && which.covers(count);
        Strike {
            signal: self.plan.signals.iter().find(|rule| hit(&rule.call, rule.which)).map(|rule| rule.effect),
            errno: self.plan.failures.iter().find(|rule| hit(&rule.call, rule.which)).map(|rule| rule.effect),
        }
    }

    /// Whether this START is one of those to be refused for no reason (rule 1.8).
    pub(crate) fn refuses_start(&self) -> bool {
        let mut counters = self.counters();
        counters.starts += 1;
        counters.starts <= self.plan.refused_starts
    }

    /// The signal that meets this exit of VCPU_RUN on its way out.
    pub(crate) fn late_signal(&self) -> Option<i32> {
        let mut counters = self.counters();
        counters.exits += 1;
        let exits = counters.exits;
        self.plan.late_signals.iter().find(|(which, _)| which.covers(exits)).map(|(_, signal)| *signal)
    }

    /// The page fault vCPU `vcpu` meets at this RUN; rules strike the boot vCPU.
    pub(crate) fn page_fault(&self, vcpu: u32) -> Option<PageFault> {
        if vcpu != 0 {
            return None;
        }
        let mut counters = self.counters();
        counters.boot_runs += 1;
        let runs = counters.boot_runs;
        for (rule, done) in self.plan.page_faults.iter().zip(&mut counters.page_faults) {
            if runs > rule.after && rule.times.is_none_or(|times| *done < times) {
                *done += 1;
                return Some(rule.fault);
            }
        }
        None
    }

    /// How often RUN answers EBUSY once a VM has ended (rule 9).
    pub(crate) fn busy_at_shutdown(&self) -> u64 {
        self.plan.busy_at_shutdown
    }

    pub(crate) fn loses_exit(&self) -> bool {
        self.plan.lost_exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injector(text: &str) -> Injector {
        Injector::new(Plan::parse(text).unwrap())
    }

    #[test]
    fn a_failure_strikes_the_occurrence_it_names() {
        let injector = injector("fail=VM_START:2:EBUSY, fail=OPEN:*:EMFILE");
        let errnos: Vec<_> = (0..3).map(|_| injector.strike("VM_START").errno).collect();
        assert_eq!(errnos, [None, Some(Errno::EBUSY), None]);
        assert_eq!(injector.strike(OPEN).errno, Some(Errno::EMFILE));
        assert_eq!(injector.strike("VCPU_RUN"), Strike::default());
    }

    #[test]
    fn a_signal_can_strike_from_some_call_on() {
        let injector = injector("signal=VCPU_RUN:2+:SIGUSR1");
        let signals: Vec<_> = (0..3).map(|_| injector.strike("VCPU_RUN").signal).collect();
        assert_eq!(signals, [None, Some(libc::SIGUSR1), Some(libc::SIGUSR1)]);
    }

    #[test]
    fn a_late_signal_counts_exits() {
        let injector = injector("late-signal=2:SIGTERM");
        assert_eq!([injector.late_signal(), injector.late_signal()], [None, Some(libc::SIGTERM)]);
    }

    #[test]
    fn page_faults_come_after_the_runs_and_as_often_as_asked() {
        let injector = injector("page-fault=ENOMEM:2:0x90000000:1");
        let fault = Some(PageFault { addr: 0x9000_0000, errno: Errno::ENOMEM });
        let seen: Vec<_> = (0..4).map(|_| injector.page_fault(0)).collect();
        assert_eq!(seen, [None, fault, fault, None]);
        assert_eq!(injector.page_fault(1), None);
    }

    #[test]
    fn the_first_starts_are_refused() {
        let injector = injector("refuse-start=2");
        let refused: Vec<_> = (0..3).map(|_| injector.refuses_start()).collect();
        assert_eq!(refused, [true, true, false]);
    }

    #[test]
    fn words_that_mean_nothing_are_refused() {
        for bad in [
            "fail=VM_START:0:EBUSY",
            "fail=NO_SUCH:1:EBUSY",
            "fail=VM_START:1:ENOSUCH",
            "signal=VCPU_RUN:1:SIGNONE",
            "page-fault=ENOMEM",
            "lost-exit=1",
            "frobnicate",
        ] {
            assert!(Plan::parse(bad).unwrap_err().contains("README.md"), "{bad}");
        }
    }
}
