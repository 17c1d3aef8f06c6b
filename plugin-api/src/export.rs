//! Turns a device into a plugin library.

use std::sync::Arc;

use abi_stable::std_types::{RBox, ROption, RResult, RStr, RString, RVec, Tuple2};

use crate::abi::device::{RawDevice, RawDevice_TO, RawDeviceBox};
use crate::abi::extension::{Extension, MMIO, NODES, PANIC, PCI, VIRTIO};
use crate::abi::host::{HostProxy, RawHostArc};
use crate::abi::{contain, mmio, nodes, pci, virtio};
use crate::log::Scope;
use crate::mmio::MmioDevice;
use crate::options::{OptionSet, Values};
use crate::pci::PciDevice;
use crate::services::Services;
use crate::virtio::VirtioDevice;

/// A device of any kind.
#[derive(Clone)]
pub enum Device {
    /// Registers in the trap window.
    Mmio(Arc<dyn MmioDevice>),
    /// A virtio device.
    Virtio(Arc<dyn VirtioDevice>),
    /// A PCI device that is not virtio.
    Pci(Arc<dyn PciDevice>),
}

impl Device {
    /// An MMIO device.
    pub fn mmio(device: impl MmioDevice + 'static) -> Self {
        Self::Mmio(Arc::new(device))
    }

    /// A virtio device.
    pub fn virtio(device: impl VirtioDevice + 'static) -> Self {
        Self::Virtio(Arc::new(device))
    }

    /// A PCI device that is not virtio.
    pub fn pci(device: impl PciDevice + 'static) -> Self {
        Self::Pci(Arc::new(device))
    }
}

/// Makes a device from its options. The error is shown to the user after the device's id: it names the option or the
/// file and says what to do.
pub type Create<O> = fn(O, Services) -> Result<Device, String>;

/// What [`export_plugin!`](crate::export_plugin) puts behind the root module's `create`.
#[doc(hidden)]
pub fn create<O: OptionSet>(
    create: Create<O>,
    options: RVec<Tuple2<RString, RString>>,
    host: RawHostArc,
) -> RResult<RawDeviceBox, RString> {
    let host = Arc::new(host);
    let sink = host.clone();
    let scope = Scope::register(Arc::new(move |level, target: &str, text: &str| {
        sink.log(level, RStr::from(target), RStr::from(text));
    }));
    let made = contain(scope, || {
        let given = options.iter().map(|pair| (pair.0.as_str(), pair.1.as_str()));
        let values = Values::check(O::SPECS, given).map_err(|e| e.to_string())?;
        let options = O::from_values(&values).map_err(|e| e.to_string())?;
        create(options, Services::new(Arc::new(HostProxy(host))).with_scope(scope))
    });
    let made = made.and_then(|result| result).inspect_err(|_| scope.unregister());
    match made {
        Ok(device) => RResult::ROk(RawDevice_TO::from_ptr(
            RBox::new(Export { device: Some(device), scope }),
            abi_stable::sabi_trait::TD_Opaque,
        )),
        Err(error) => RResult::RErr(RString::from(error)),
    }
}

/// What [`export_plugin!`](crate::export_plugin) puts behind the root module's `init`.
#[doc(hidden)]
pub fn init(max_level: u8) {
    crate::log::install(max_level);
}

struct Export {
    /// `None` only while it is dropped.
    device: Option<Device>,
    scope: Scope,
}

impl Drop for Export {
    /// The host lets go of the device's interfaces before: this is the end of the device itself.
    fn drop(&mut self) {
        let device = self.device.take();
        if let Err(panic) = contain(self.scope, move || drop(device)) {
            contain(self.scope, || tracing::error!("{panic} when it was dropped")).ok();
        }
        self.scope.unregister();
    }
}

impl RawDevice for Export {
    fn reset(&self) -> ROption<RString> {
        let reset = contain(self.scope, || match &self.device {
            Some(Device::Mmio(device)) => device.reset(),
            Some(Device::Virtio(device)) => device.reset(),
            Some(Device::Pci(device)) => device.reset(),
            None => {}
        });
        reset.err().map(RString::from).into()
    }

    fn metrics(&self) -> RVec<Tuple2<RString, u64>> {
        let metrics = contain(self.scope, || match &self.device {
            Some(Device::Mmio(device)) => device.metrics(),
            Some(Device::Virtio(device)) => device.metrics(),
            Some(Device::Pci(device)) => device.metrics(),
            None => Vec::new(),
        });
        metrics
            .unwrap_or_default()
            .into_iter()
            .map(|metric| Tuple2(metric.name.into(), metric.value))
            .collect()
    }

    fn extension(&self, id: RStr<'_>) -> ROption<Extension> {
        match (&self.device, id.as_str()) {
            (Some(Device::Mmio(device)), MMIO) => mmio::export(device.clone(), self.scope),
            (Some(Device::Mmio(device)), NODES) => nodes::export(device.clone(), self.scope),
            (Some(Device::Virtio(device)), VIRTIO) => virtio::export(device.clone(), self.scope),
            (Some(Device::Pci(device)), PCI) => pci::export(device.clone(), self.scope),
            (_, PANIC) => {
                let _ = contain(self.scope, || panic!("asked to panic"));
                ROption::RNone
            }
            _ => ROption::RNone,
        }
    }
}

/// Exports a device as a plugin.
///
/// ```ignore
/// gvmm_plugin_api::export_plugin! {
///     id: "org.example.thermometer",
///     name: "thermometer",
///     vendor: "Example",
///     url: "https://example.org",
///     description: "A thermometer with two registers",
///     kind: Mmio,
///     options: Options,
///     create: create,
/// }
/// ```
///
/// `version` and `license` come from the crate's manifest. `kind` is a variant of [`descriptor::Kind`], `create` is a
/// [`Create`]. `requires: [...]` and `syscalls: [...]` may follow; see [`descriptor::Descriptor`].
///
/// [`descriptor::Kind`]: crate::descriptor::Kind
/// [`descriptor::Descriptor`]: crate::descriptor::Descriptor
#[macro_export]
macro_rules! export_plugin {
    (
        id: $id:expr,
        name: $name:expr,
        vendor: $vendor:expr,
        url: $url:expr,
        description: $description:expr,
        kind: $kind:ident $( ( $number:expr ) )?,
        options: $options:ty,
        create: $create:expr
        $(, requires: [ $($requires:expr),* $(,)? ])?
        $(, syscalls: [ $($syscalls:expr),* $(,)? ])?
        $(,)?
    ) => {
        /// What this plugin says of itself.
        pub const DESCRIPTOR: $crate::descriptor::Descriptor = $crate::descriptor::Descriptor {
            id: $id,
            name: $name,
            version: env!("CARGO_PKG_VERSION"),
            vendor: $vendor,
            url: $url,
            description: $description,
            license: env!("CARGO_PKG_LICENSE"),
            kind: $crate::descriptor::Kind::$kind $( ( $number ) )?,
            options: <$options as $crate::options::OptionSet>::SPECS,
            requires: &[ $( $($requires),* )? ],
            syscalls: &[ $( $($syscalls),* )? ],
        };

        #[allow(unsafe_code, reason = "the section and the entry symbol need link attributes")]
        const _: () = {
            use $crate::abi::root as gvmm_root;

            const LEN: usize = $crate::descriptor::json_len(&DESCRIPTOR);

            #[used]
            #[unsafe(link_section = ".gvmm.plugin")]
            static JSON: [u8; LEN] = $crate::descriptor::json::<LEN>(&DESCRIPTOR);

            // Functions are looked up by name where the macro is used: these must not hide the caller's own.
            extern "C" fn gvmm_descriptor() -> gvmm_root::Text {
                gvmm_root::text(&JSON)
            }

            extern "C" fn gvmm_init(max_level: u8) {
                gvmm_root::init(max_level)
            }

            extern "C" fn gvmm_create(
                options: gvmm_root::OptionList,
                host: gvmm_root::Host,
            ) -> gvmm_root::Created {
                gvmm_root::create::<$options>($create, options, host)
            }

            extern "C" fn gvmm_load() -> gvmm_root::Loaded {
                gvmm_root::load(gvmm_root::PluginRoot {
                    descriptor: gvmm_descriptor,
                    init: gvmm_init,
                    create: gvmm_create,
                })
            }

            #[used]
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            // SAFETY: `gvmm_load` passes on what the function of that name returns.
            static HEADER: gvmm_root::Header = unsafe { gvmm_root::header(gvmm_load) };
        };
    };
}
