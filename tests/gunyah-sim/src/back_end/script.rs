//! The language of scripted vCPUs: a JSON file with a list of steps per vCPU. README.md is its reference.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer};

/// A number, or a string `"0x..."`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number(pub(crate) u64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Plain(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Plain(value) => Ok(Number(value)),
            Form::Text(text) => text
                .strip_prefix("0x")
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .map(Number)
                .ok_or_else(|| {
                    serde::de::Error::custom(format!("{text:?} is no number like \"0x80000000\""))
                }),
        }
    }
}

/// Bytes as a string of hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text: String = String::deserialize(deserializer)?;
        let digits: Vec<u32> =
            text.chars().filter(|c| !c.is_whitespace()).filter_map(|c| c.to_digit(16)).collect();
        let plain = text.chars().filter(|c| !c.is_whitespace()).count();
        if digits.len() != plain || !digits.len().is_multiple_of(2) {
            return Err(serde::de::Error::custom(format!("{text:?} is not pairs of hexadecimal digits")));
        }
        Ok(Bytes(digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()))
    }
}

fn four() -> u8 {
    4
}

fn wait_limit() -> u64 {
    10_000
}

/// One thing a vCPU does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", rename_all_fields = "kebab-case", deny_unknown_fields)]
pub(crate) enum Step {
    /// A store to an address without memory.
    Write {
        addr: Number,
        #[serde(default = "four")]
        len: u8,
        value: Number,
        /// Whether the program has to see it (`false`: an ioeventfd took it).
        exits: Option<bool>,
        /// Whether the guest gets an external abort.
        #[serde(default)]
        aborts: bool,
    },
    /// A load from an address without memory.
    Read {
        addr: Number,
        #[serde(default = "four")]
        len: u8,
        expect: Option<Number>,
        mask: Option<Number>,
        /// Read again until the value is the expected one.
        #[serde(default)]
        until: bool,
        #[serde(default = "wait_limit")]
        timeout_ms: u64,
        #[serde(default)]
        aborts: bool,
    },
    /// Waits for the interrupt of a doorbell.
    WaitIrq {
        label: u32,
        #[serde(default = "wait_limit")]
        timeout_ms: u64,
    },
    /// Fails if the doorbell rings within a time.
    NoIrq { label: u32, ms: u64 },
    /// Writes guest memory.
    Store {
        addr: Number,
        bytes: Bytes,
        #[serde(default)]
        aborts: bool,
    },
    /// Reads guest memory and compares.
    Load { addr: Number, bytes: Bytes },
    /// Compares the registers at the first instruction.
    ExpectBoot {
        pc: Option<Number>,
        #[serde(default)]
        x: BTreeMap<u32, Number>,
    },
    /// PSCI CPU_ON of another vCPU.
    CpuOn(u32),
    /// PSCI CPU_OFF: goes on behind this step when another vCPU turns it on.
    CpuOff,
    /// Lets time pass, in milliseconds.
    Sleep(u64),
    /// Never comes back but for a signal or the end of the VM.
    Hang,
    /// A page the kernel fails to get, with its errno; `times` absent is for good.
    PageFault { addr: Number, errno: String, times: Option<u64> },
    /// PSCI SYSTEM_OFF.
    PowerOff,
    /// PSCI SYSTEM_RESET.
    Reset,
    /// PSCI SYSTEM_RESET2.
    Reset2,
    /// A watchdog bite.
    Watchdog,
    /// A hypervisor error.
    Crash,
    /// An asynchronous external abort.
    ExternalAbort,
    /// Any end: `status` of the run page and `exit_info.type`.
    End {
        status: u32,
        #[serde(rename = "type")]
        exit_type: u16,
    },
    /// Steps several times; `times` absent is for good.
    Repeat { times: Option<u64>, steps: Vec<Step> },
    /// A line in the trace.
    Note(String),
}

/// What every vCPU does.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    /// By vCPU id. A vCPU without an entry hangs once it is on.
    pub(crate) vcpus: Vec<Vec<Step>>,
}

impl Script {
    pub(crate) fn load(path: &Path) -> Result<Script, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Script::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Script, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_with_their_defaults() {
        let script = Script::parse(
            r#"{"vcpus": [[
                {"write": {"addr": "0x9000000", "value": 65}},
                {"store": {"addr": 4096, "bytes": "00 ff"}},
                {"repeat": {"times": 2, "steps": ["crash"]}},
                {"wait-irq": {"label": 1}},
                "power-off"
            ]]}"#,
        )
        .unwrap();
        let steps = &script.vcpus[0];
        assert_eq!(
            steps[0],
            Step::Write { addr: Number(0x900_0000), len: 4, value: Number(65), exits: None, aborts: false }
        );
        assert_eq!(steps[1], Step::Store { addr: Number(4096), bytes: Bytes(vec![0, 255]), aborts: false });
        assert_eq!(steps[2], Step::Repeat { times: Some(2), steps: vec![Step::Crash] });
        assert_eq!(steps[3], Step::WaitIrq { label: 1, timeout_ms: 10_000 });
        assert_eq!(steps[4], Step::PowerOff);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            (r#"{"vcpus": [["explode"]]}"#, "explode"),
            (r#"{"vcpus": [[{"write": {"addr": "9", "value": 1}}]]}"#, "is no number like"),
            (r#"{"vcpus": [[{"load": {"addr": 1, "bytes": "0x1"}}]]}"#, "hexadecimal"),
            (r#"{"vcpus": [[{"read": {"addr": 1, "lenght": 4}}]]}"#, "lenght"),
        ] {
            let error = Script::parse(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
