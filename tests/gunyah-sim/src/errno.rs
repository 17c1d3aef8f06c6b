//! Error numbers with their names, for the trace and for injected failures.

/// An error number as the kernel returns it (positive).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

macro_rules! errnos {
    ($($name:ident),* $(,)?) => {
        #[allow(dead_code, reason = "the table serves names as well as constants")]
        impl Errno {
            $(pub(crate) const $name: Errno = Errno(libc::$name);)*
        }

        const NAMES: &[(&str, i32)] = &[$((stringify!($name), libc::$name)),*];
    };
}

errnos!(
    E2BIG, EACCES, EAGAIN, EBADF, EBADMSG, EBUSY, EEXIST, EFAULT, EFBIG, EINTR, EINVAL, EIO, EMFILE, ENFILE,
    ENODEV, ENOENT, ENOMEM, ENOSPC, ENOTTY, ENXIO, EOPNOTSUPP, EOVERFLOW, EPERM, ETIMEDOUT,
);

impl Errno {
    /// The symbolic name, or the number where the simulator has no name for it.
    pub(crate) fn name(self) -> String {
        NAMES
            .iter()
            .find(|(_, number)| *number == self.0)
            .map_or_else(|| self.0.to_string(), |(name, _)| (*name).to_owned())
    }

    /// Looks a symbolic name up.
    pub(crate) fn from_name(name: &str) -> Option<Errno> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| Errno(*number))
    }

    /// The calling thread's `errno`.
    pub(crate) fn last() -> Errno {
        Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
    }
}

impl std::fmt::Debug for Errno {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_lead_to_each_other() {
        assert_eq!(Errno::from_name("ENOMEM"), Some(Errno::ENOMEM));
        assert_eq!(Errno::ENOMEM.name(), "ENOMEM");
        assert_eq!(Errno::from_name("ENOSUCH"), None);
        assert_eq!(Errno(4095).name(), "4095");
    }
}
