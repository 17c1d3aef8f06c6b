//! What the environment asks of the simulator. README.md is the reference of the variables.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use crate::abi::{Flavour, Generation};
use crate::inject::Plan;
use crate::rm::Build;

/// The node, if there is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// A driver of generations A to C.
    Driver(Flavour),
    /// The vendor's driver before them (rule 1.0).
    Vendor,
    /// No such file.
    Absent,
    /// The file is there but not for this user.
    Forbidden,
}

/// All settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) node: Node,
    /// Scripted vCPUs; without one, KVM runs them.
    pub(crate) script: Option<PathBuf>,
    pub(crate) build: Build,
    /// Cores of the platform.
    pub(crate) cores: u32,
    /// Whether RLIMIT_MEMLOCK counts.
    pub(crate) memlock: bool,
    /// Time from the last close to the end of a VM in generation A.
    pub(crate) teardown: Duration,
    /// Time after the end of a VM in which the next START is refused (rule 1.8).
    pub(crate) grace: Duration,
    pub(crate) inject: Plan,
    pub(crate) trace: Option<PathBuf>,
    /// Whether VCPU_RUN is traced too.
    pub(crate) trace_run: bool,
    pub(crate) report: Option<PathBuf>,
    /// Whether kernel log lines go to standard error.
    pub(crate) log: bool,
}

/// Exit code of a program whose settings for the simulator make no sense.
const BAD_SETTINGS: i32 = 97;
/// The platform of the measured build (rule 3.2).
const DEFAULT_CORES: u32 = 8;
/// Long enough that a program which does not wait for the end is found out.
const DEFAULT_TEARDOWN: Duration = Duration::from_millis(50);

impl Config {
    /// Reads the settings through `var`; `None` where no simulation is asked for.
    fn read(var: &dyn Fn(&str) -> Option<String>) -> Result<Option<Config>, String> {
        let Some(kind) = var("GUNYAH_SIM") else { return Ok(None) };
        let node = match kind.as_str() {
            "A" => Node::Driver(Flavour::A),
            "A+" => Node::Driver(Flavour::APlus),
            "B" => Node::Driver(Flavour::B),
            "C" => Node::Driver(Flavour::C),
            "C+" => Node::Driver(Flavour::CPlus),
            "V0" => Node::Vendor,
            "none" => Node::Absent,
            "eacces" => Node::Forbidden,
            _ => return Err(format!("GUNYAH_SIM={kind}: expected A, A+, B, C, C+, V0, none or eacces")),
        };
        let build = match var("GUNYAH_SIM_RM").as_deref() {
            Some("debug") => Build::Debug,
            Some("production") => Build::Production,
            // The open build runs generation A; phones run the others.
            None => match node {
                Node::Driver(flavour) if flavour.generation() != Generation::A => Build::Production,
                _ => Build::Debug,
            },
            Some(other) => return Err(format!("GUNYAH_SIM_RM={other}: expected debug or production")),
        };
        let number = |name: &str, default: u64| match var(name) {
            Some(text) => text.parse().map_err(|_| format!("{name}={text}: expected a number")),
            None => Ok(default),
        };
        let switch = |name: &str, default: bool| match var(name).as_deref() {
            None => Ok(default),
            Some("on") => Ok(true),
            Some("off") => Ok(false),
            Some(other) => Err(format!("{name}={other}: expected on or off")),
        };
        let milliseconds = |name: &str, default: Duration| {
            number(name, default.as_millis() as u64).map(Duration::from_millis)
        };
        let cores = number("GUNYAH_SIM_CORES", u64::from(DEFAULT_CORES))?;
        Ok(Some(Config {
            node,
            script: var("GUNYAH_SIM_SCRIPT").map(PathBuf::from),
            build,
            cores: u32::try_from(cores).map_err(|_| format!("GUNYAH_SIM_CORES={cores}: too many"))?,
            memlock: switch("GUNYAH_SIM_MEMLOCK", true)?,
            teardown: milliseconds("GUNYAH_SIM_TEARDOWN_MS", DEFAULT_TEARDOWN)?,
            grace: milliseconds("GUNYAH_SIM_GRACE_MS", Duration::ZERO)?,
            inject: Plan::parse(&var("GUNYAH_SIM_INJECT").unwrap_or_default())
                .map_err(|error| format!("GUNYAH_SIM_INJECT: {error}"))?,
            trace: var("GUNYAH_SIM_TRACE").map(PathBuf::from),
            trace_run: switch("GUNYAH_SIM_TRACE_RUN", true)?,
            report: var("GUNYAH_SIM_REPORT").map(PathBuf::from),
            log: switch("GUNYAH_SIM_LOG", false)?,
        }))
    }

    /// The process's settings. Settings that make no sense end the process: a test must not run with others.
    pub(crate) fn get() -> Option<&'static Config> {
        static CONFIG: OnceLock<Option<Config>> = OnceLock::new();
        CONFIG
            .get_or_init(|| match Config::read(&|name| std::env::var(name).ok()) {
                Ok(config) => config,
                Err(error) => {
                    eprintln!("gunyah-sim: {error}");
                    std::process::exit(BAD_SETTINGS);
                }
            })
            .as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)]) -> Result<Option<Config>, String> {
        let vars: Vec<(String, String)> =
            vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Config::read(&|name| vars.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone()))
    }

    #[test]
    fn without_its_variable_there_is_no_simulation() {
        assert_eq!(read(&[("GUNYAH_SIM_CORES", "4")]), Ok(None));
    }

    #[test]
    fn the_resource_manager_goes_with_the_generation() {
        let build = |kind| read(&[("GUNYAH_SIM", kind)]).unwrap().unwrap().build;
        assert_eq!((build("A"), build("A+")), (Build::Debug, Build::Debug));
        assert_eq!((build("B"), build("C")), (Build::Production, Build::Production));
        let forced = read(&[("GUNYAH_SIM", "A"), ("GUNYAH_SIM_RM", "production")]);
        assert_eq!(forced.unwrap().unwrap().build, Build::Production);
    }

    #[test]
    fn settings_without_meaning_are_named() {
        for (name, value) in [
            ("GUNYAH_SIM", "D"),
            ("GUNYAH_SIM_RM", "beta"),
            ("GUNYAH_SIM_CORES", "many"),
            ("GUNYAH_SIM_MEMLOCK", "maybe"),
            ("GUNYAH_SIM_INJECT", "nothing-known"),
        ] {
            let mut vars = vec![(name, value)];
            if name != "GUNYAH_SIM" {
                vars.push(("GUNYAH_SIM", "A"));
            }
            assert!(read(&vars).unwrap_err().starts_with(name), "{name}");
        }
    }
}
