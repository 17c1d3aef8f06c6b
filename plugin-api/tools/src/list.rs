//! `gvmm plugin list`: the plugins that gvmm finds by name.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use gvmm_plugin_api::host::{Manifest, search};
use serde::Serialize;

use crate::{code, output};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// A plugin file.
#[derive(Debug, Serialize)]
struct Entry {
    /// What users call it: the file name without `.so`.
    name: String,
    file: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    plugin: Option<Manifest>,
    /// Why it cannot be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
    /// A plugin of the same name in a folder that is searched before.
    #[serde(skip_serializing_if = "Option::is_none")]
    hidden_by: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8, String> {
    let folders = search::folders();
    let entries = entries(&folders);
    if arguments.json {
        output::json(&entries)?;
    } else {
        output::text(&table(&entries, &folders));
    }
    Ok(code::GOOD)
}

/// The plugins of the folders, in the order in which they are searched.
fn entries(folders: &[PathBuf]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for file in folders.iter().flat_map(|folder| libraries(folder)) {
        if entries.iter().any(|entry| entry.file == file) {
            continue;
        }
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let hidden_by = entries.iter().find(|entry| entry.name == name).map(|entry| entry.file.clone());
        let (plugin, refused) = match Manifest::read(&file) {
            Ok(manifest) => (Some(manifest), None),
            Err(error) => (None, Some(error.to_string())),
        };
        entries.push(Entry { name, file, plugin, refused, hidden_by });
    }
    entries
}

/// The shared libraries of a folder, sorted; none of one that cannot be read.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let files = folder.read_dir().into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> =
        files.filter(|file| file.extension().is_some_and(|extension| extension == "so")).collect();
    files.sort();
    files
}

fn table(entries: &[Entry], folders: &[PathBuf]) -> String {
    let mut text = String::new();
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    for entry in entries {
        let what = match (&entry.plugin, &entry.refused) {
            (Some(plugin), _) => format!("{:<7} {:<8} {}", plugin.kind, plugin.version, plugin.description),
            (None, why) => format!("cannot be used: {}", why.as_deref().unwrap_or_default()),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<width$}  {what}", entry.name);
        if let Some(first) = &entry.hidden_by {
            let _ =
                writeln!(text, "{:<width$}  {} is hidden by {}", "", entry.file.display(), first.display());
        }
    }
    if entries.is_empty() {
        text.push_str("There is no plugin in any of these folders:\n");
        folders.iter().for_each(|folder| text.push_str(&format!("  {}\n", folder.display())));
    }
    text
}
