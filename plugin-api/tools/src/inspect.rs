//! `gvmm plugin inspect`: what a plugin says of itself, read from its file.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gvmm_plugin_api::descriptor::API_VERSION;
use gvmm_plugin_api::host::manifest::{ManifestKind, PluginError};
use gvmm_plugin_api::host::{Library, Manifest, search};
use gvmm_vhost::device_types;
use serde::Serialize;

use crate::{child, code, output};

/// How long loading may take.
const LOAD_TIME: Duration = Duration::from_secs(60);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Path or name of a plugin
    plugin: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Also load it, in a process of its own
    #[arg(long)]
    load: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LoadArguments {
    file: PathBuf,
}

/// What is known of a plugin file.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    /// Version of the plugin interface that it was built for.
    api: (u16, u16),
    /// Version of the plugin interface that this gvmm offers.
    offered: (u16, u16),
    /// Why this gvmm does not take the version.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<Manifest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<Loaded>,
}

/// How loading went.
#[derive(Debug, Serialize)]
struct Loaded {
    loads: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    why_not: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8, String> {
    let file = search::find(&arguments.plugin)?;
    let mut report = read(&file)?;
    if arguments.load && report.refused.is_none() {
        report.load = Some(try_to_load(&file)?);
    }
    if arguments.json {
        output::json(&report)?;
    } else {
        output::text(&report.text());
    }
    let bad = report.refused.is_some() || report.load.is_some_and(|load| !load.loads);
    Ok(if bad { code::BAD } else { code::GOOD })
}

/// Loads a plugin into this process.
pub(crate) fn load(arguments: &LoadArguments) -> Result<u8, String> {
    Library::load(&arguments.file, 1).map_err(|e| e.to_string())?;
    Ok(code::GOOD)
}

fn read(file: &Path) -> Result<Report, String> {
    let report = |api, refused, plugin| Report {
        file: file.to_owned(),
        api,
        offered: API_VERSION,
        refused,
        plugin,
        load: None,
    };
    match Manifest::read(file) {
        Ok(manifest) => Ok(report(manifest.api, None, Some(manifest))),
        Err(error @ PluginError::Version { plugin, .. }) => Ok(report(plugin, Some(error.to_string()), None)),
        Err(error) => Err(error.to_string()),
    }
}

/// Loads a plugin in another process, which it may take down.
fn try_to_load(file: &Path) -> Result<Loaded, String> {
    let name = file.to_str().ok_or_else(|| format!("plugin {}: its name is no text", file.display()))?;
    let ended = child::run(&["load", name], LOAD_TIME)?;
    if ended.success() {
        return Ok(Loaded { loads: true, why_not: None });
    }
    // An error that the other process could still say is the whole story.
    let said = ended.err.lines().rfind(|line| line.starts_with("gvmm plugin: "));
    let why = said.map_or_else(|| ended.describe(), |line| line["gvmm plugin: ".len()..].to_owned());
    Ok(Loaded { loads: false, why_not: Some(why) })
}

impl Report {
    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<12}{value}");
        };
        if let Some(plugin) = &self.plugin {
            line("plugin", &format!("{} {}: {}", plugin.name, plugin.version, plugin.description));
        }
        line("file", &self.file.display().to_string());
        line("API", &self.api_text());
        if let Some(plugin) = &self.plugin {
            line("id", &plugin.id);
            line("kind", &kind(plugin));
            line("vendor", &plugin.vendor);
            if !plugin.url.is_empty() {
                line("url", &plugin.url);
            }
            line("licence", &plugin.license);
            line("opens", &or_nothing(paths(plugin)));
            line("extensions", &or_nothing(plugin.requires.clone()));
            line("calls", &or_nothing(plugin.syscalls.clone()));
        }
        if let Some(load) = &self.load {
            line("load", load.why_not.as_deref().unwrap_or("it loads"));
        }
        if let Some(plugin) = &self.plugin {
            text.push_str("options\n");
            // The first line of the help is the plugin's.
            plugin.help().lines().skip(1).for_each(|line| text.push_str(&format!("{line}\n")));
        }
        text
    }

    fn api_text(&self) -> String {
        let version = format!("{}.{}", self.api.0, self.api.1);
        match &self.refused {
            Some(why) => format!("{version}, which this gvmm does not take: {why}"),
            None => format!("{version}, which this gvmm ({}.{}) takes", self.offered.0, self.offered.1),
        }
    }
}

fn kind(plugin: &Manifest) -> String {
    let Some(number) = plugin.virtio_type else { return plugin.kind.clone() };
    let name = device_types::of_number(number).map_or_else(String::new, |known| format!(" ({})", known.name));
    format!("virtio device of type {number}{name}")
}

/// The options that name files, with what is done to these.
fn paths(plugin: &Manifest) -> Vec<String> {
    let path = |option: &gvmm_plugin_api::host::manifest::ManifestOption| match &option.kind {
        ManifestKind::Path { access } => Some(format!("{} ({access})", option.name)),
        _ => None,
    };
    plugin.options.iter().filter_map(path).collect()
}

fn or_nothing(list: Vec<String>) -> String {
    if list.is_empty() { "nothing".to_owned() } else { list.join(", ") }
}
