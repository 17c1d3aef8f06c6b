//! Which other files an image may name as its backing files.
//!
//! The image decides nothing: whoever made it could name any file of the host and so show it to the guest.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use imago::format::gate::ImplicitOpenGate;
use imago::{FormatAccess, FormatDriverBuilder, Storage, StorageOpenOptions};

use super::header;
use crate::image::lock;

/// Most images in a chain; an image that is its own backing file has no end.
const MAX_DEPTH: usize = 16;

/// Opens backing files within what the user allows, for reading.
#[derive(Debug, Clone)]
pub(super) struct Gate {
    /// A file, or a folder with everything in it.
    allowed: Option<PathBuf>,
    lock: bool,
    opened: Arc<Mutex<Vec<File>>>,
}

impl Gate {
    /// A gate for what the option `backing` names.
    pub(super) fn new(allowed: Option<&Path>, lock: bool) -> io::Result<Self> {
        let allowed = allowed.map(Path::canonicalize).transpose()?;
        Ok(Self { allowed, lock, opened: Arc::default() })
    }

    /// The files behind the gate, whose locks last as long as they are open.
    pub(super) fn into_opened(self) -> Vec<File> {
        std::mem::take(&mut self.opened.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn admit(&self, named: &Path) -> io::Result<PathBuf> {
        let refused = |text: String| io::Error::new(io::ErrorKind::PermissionDenied, text);
        let shown = named.display();
        let Some(allowed) = &self.allowed else {
            return Err(refused(format!("add backing={shown} if the guest may read that file")));
        };
        let path = named
            .canonicalize()
            .map_err(|error| io::Error::new(error.kind(), format!("{shown}: {error}")))?;
        if !path.starts_with(allowed) {
            let allowed = allowed.display();
            return Err(refused(format!("{shown} is not what backing={allowed} allows")));
        }
        Ok(path)
    }

    fn admit_file(&self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other(format!("{} is not a file", path.display())));
        }
        if self.lock {
            lock::lock(&file, path, false).map_err(io::Error::other)?;
        }
        match header::read(&file) {
            // The backing file of a backing file, or a raw one.
            Ok(_) | Err(header::HeaderError::Magic) => {}
            Err(error) => return Err(io::Error::other(format!("{} {error}", path.display()))),
        }
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.len() >= MAX_DEPTH {
            return Err(io::Error::other(format!("there are more than {MAX_DEPTH} images in the chain")));
        }
        opened.push(file);
        Ok(())
    }
}

impl<S: Storage + 'static> ImplicitOpenGate<S> for Gate {
    fn open_format<F: FormatDriverBuilder<S>>(&mut self, builder: F) -> io::Result<FormatAccess<S>> {
        Ok(FormatAccess::new(builder.write(false).open(self.clone())?))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<S> {
        let named = options.get_filename().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let path = self.admit(named)?;
        self.admit_file(&path)?;
        S::open(options.filename(path).write(false))
    }
}
