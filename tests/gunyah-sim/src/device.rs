//! The driver's files: what opening the node and each request on its descriptors do.

pub(crate) mod vcpu;
pub(crate) mod vm;

use std::sync::{Arc, OnceLock};

use crate::abi::args::{
    Argument, AuthDescriptor, BootContext, CreateMem, FunctionDescriptor, GuestRange, MapMem, MemRegion,
    function,
};
use crate::abi::{Flavour, Generation, Owner, PAGE, Request, name_of};
use crate::config::{Config, Node};
use crate::errno::Errno;
use crate::host::{guest_mem, objects, signals, user};
use crate::inject::{Injector, OPEN};
use crate::trace::{self, Call};

use vcpu::Vcpu;
use vm::Vm;

/// What a descriptor stands for.
#[derive(Clone)]
pub(crate) enum Object {
    /// The opened node.
    Node,
    Vm(Arc<Vm>),
    Vcpu(Arc<Vcpu>),
}

impl Object {
    fn owner(&self) -> Owner {
        match self {
            Object::Node => Owner::Node,
            Object::Vm(_) => Owner::Vm,
            Object::Vcpu(_) => Owner::Vcpu,
        }
    }
}

/// The process's injections.
pub(crate) fn injector() -> &'static Injector {
    static INJECTOR: OnceLock<Injector> = OnceLock::new();
    INJECTOR
        .get_or_init(|| Injector::new(Config::get().map(|config| config.inject.clone()).unwrap_or_default()))
}

/// Counts a call and applies what is injected into it.
pub(crate) fn strike(name: &str, call: &mut Call) -> Result<(), Errno> {
    let strike = injector().strike(name);
    if let Some(signal) = strike.signal {
        call.set("signal", signal);
        signals::raise(signal);
    }
    match strike.errno {
        Some(errno) => {
            call.set("injected", true);
            Err(errno)
        }
        None => Ok(()),
    }
}

/// Opens the node.
pub(crate) fn open(config: &'static Config, close_on_exec: bool) -> Result<i32, Errno> {
    let mut call = Call::new(OPEN);
    let result = strike(OPEN, &mut call).and_then(|()| match config.node {
        Node::Absent => Err(Errno::ENOENT),
        Node::Forbidden => Err(Errno::EACCES),
        Node::Driver(_) | Node::Vendor => objects::publish(Object::Node, close_on_exec),
    });
    trace::call(call, result.map(i64::from));
    result
}

/// A request on one of the driver's descriptors.
pub(crate) fn ioctl(config: &'static Config, object: &Object, number: u32, arg: u64) -> Result<i64, Errno> {
    let flavour = match config.node {
        Node::Driver(flavour) => flavour,
        // The vendor's driver refuses 'G' requests (rule 1.0, 1.7).
        _ => return refuse(number, Errno::EINVAL),
    };
    let Some(request) = Request::decode(flavour, object.owner(), number) else {
        // rule 1.4: a vCPU of A answers EINVAL, all else ENOTTY.
        let of_vcpu_a = matches!(object, Object::Vcpu(_)) && flavour.generation() == Generation::A;
        return refuse(number, if of_vcpu_a { Errno::EINVAL } else { Errno::ENOTTY });
    };
    let mut call = Call::new(request.name());
    let struck = match request {
        // Its signals are held back first.
        Request::VcpuRun => Ok(()),
        _ => strike(request.name(), &mut call),
    };
    let result = struck.and_then(|()| serve(config, flavour, object, request, arg, &mut call));
    if request != Request::VcpuRun || config.trace_run {
        trace::call(call, result);
    }
    result
}

fn refuse(number: u32, errno: Errno) -> Result<i64, Errno> {
    trace::call(Call::new(name_of(number)), Err(errno));
    Err(errno)
}

fn serve(
    config: &'static Config,
    flavour: Flavour,
    object: &Object,
    request: Request,
    arg: u64,
    call: &mut Call,
) -> Result<i64, Errno> {
    match object {
        Object::Node => serve_node(config, flavour, request, arg, call),
        Object::Vm(vm) => serve_vm(vm, request, arg, call),
        Object::Vcpu(vcpu) => match request {
            Request::VcpuRun => vcpu.run(call),
            _ => Ok(PAGE.cast_signed()),
        },
    }
}

fn copy_in<T: Argument>(arg: u64) -> Result<T, Errno> {
    user::read(arg, T::SIZE).map(|bytes| T::decode(&bytes))
}

fn serve_node(
    config: &'static Config,
    flavour: Flavour,
    request: Request,
    arg: u64,
    call: &mut Call,
) -> Result<i64, Errno> {
    match request {
        Request::CreateVm if arg != 0 => Err(Errno::EINVAL),
        Request::CreateVm => {
            let vm = Arc::new(Vm::new(config, flavour));
            call.set("vm", vm.id());
            objects::publish(Object::Vm(vm), true).map(i64::from)
        }
        _ => {
            let arg: CreateMem = copy_in(arg)?;
            call.hex("size", arg.size);
            call.hex("flags", arg.flags);
            guest_mem::create(&arg).map(i64::from)
        }
    }
}

fn range_of(arg: u64, call: &mut Call) -> Result<GuestRange, Errno> {
    let range: GuestRange = copy_in(arg)?;
    call.hex("guest", range.guest);
    call.hex("size", range.size);
    Ok(range)
}

fn serve_vm(vm: &Arc<Vm>, request: Request, arg: u64, call: &mut Call) -> Result<i64, Errno> {
    call.set("vm", vm.id());
    match request {
        Request::SetUserMemRegion | Request::LendUserMem => {
            vm.check_owner()?;
            let region: MemRegion = copy_in(arg)?;
            call.set("label", region.label);
            call.hex("flags", region.flags.into());
            call.hex("guest", region.guest);
            call.hex("size", region.size);
            vm.add_memory(&region, request == Request::LendUserMem)?;
        }
        Request::MapMem => {
            let map: MapMem = copy_in(arg)?;
            call.hex("flags", map.flags.into());
            call.hex("guest", map.guest);
            call.hex("offset", map.offset);
            call.hex("size", map.size);
            vm.map_memory(&map)?;
        }
        Request::SetDtbConfig => vm.driver().set_tree(range_of(arg, call)?)?,
        Request::SetFwConfig => vm.driver().set_firmware(range_of(arg, call)?)?,
        Request::ReclaimRegion => {
            vm.check_owner()?;
            vm.driver().memory.check_reclaim(range_of(arg, call)?)?;
        }
        Request::SetBootContext => {
            let context: BootContext = copy_in(arg)?;
            call.hex("register", context.register.into());
            call.hex("value", context.value);
            vm.driver().set_boot_context(context.register, context.value)?;
        }
        Request::SetAuthType => {
            let auth: AuthDescriptor = copy_in(arg)?;
            call.set("type", auth.kind);
            vm.driver().set_auth_type(auth.kind)?;
        }
        // The memory behind it belongs to devices this host has none of.
        Request::MapCmaMem => {
            user::read(arg, 40)?;
            return Err(Errno::EINVAL);
        }
        // The one known capability is VCPU_TIMER_WAKEUP, 0 (rule 1.1).
        Request::CheckExtension => return Ok(i64::from(arg == 0)),
        Request::AddFunction => return add_function(vm, &copy_in(arg)?, call),
        Request::RemoveFunction => return remove_function(vm, &copy_in(arg)?, call),
        _ => return vm.start().map(|()| 0),
    }
    Ok(0)
}

/// The argument of a function, in the order the driver checks: size limit, copy, type, exact size.
fn function_arg(desc: &FunctionDescriptor, call: &mut Call) -> Result<Vec<u8>, Errno> {
    call.set("type", desc.kind);
    if desc.arg_size > function::MAX_ARG {
        return Err(Errno::EINVAL);
    }
    user::read(desc.arg, desc.arg_size as usize)
}

fn exact<T: Argument>(bytes: &[u8]) -> Result<T, Errno> {
    if bytes.len() == T::SIZE { Ok(T::decode(bytes)) } else { Err(Errno::EINVAL) }
}

fn add_function(vm: &Arc<Vm>, desc: &FunctionDescriptor, call: &mut Call) -> Result<i64, Errno> {
    let bytes = function_arg(desc, call)?;
    match desc.kind {
        function::VCPU => {
            let arg: crate::abi::args::VcpuArg = exact(&bytes)?;
            call.set("vcpu", arg.id);
            let vcpu = Vcpu::add(vm, arg.id)?;
            objects::publish(Object::Vcpu(Arc::new(vcpu)), true).map(i64::from)
        }
        function::IRQFD => {
            let arg = exact(&bytes)?;
            describe_irqfd(&arg, call);
            vm.add_irqfd(&arg).map(|()| 0)
        }
        function::IOEVENTFD => {
            let arg = exact(&bytes)?;
            describe_ioeventfd(&arg, call);
            vm.add_ioeventfd(&arg).map(|()| 0)
        }
        _ => Err(Errno::ENOENT),
    }
}

fn remove_function(vm: &Vm, desc: &FunctionDescriptor, call: &mut Call) -> Result<i64, Errno> {
    let bytes = function_arg(desc, call)?;
    // An argument of another size is the argument of no function there is.
    let same = |errno: Errno| if errno == Errno::EINVAL { Errno::ENOENT } else { errno };
    match desc.kind {
        function::VCPU => {
            let arg: crate::abi::args::VcpuArg = exact(&bytes).map_err(same)?;
            call.set("vcpu", arg.id);
            vm.remove_vcpu(arg.id)?;
        }
        function::IRQFD => {
            let arg = exact(&bytes).map_err(same)?;
            describe_irqfd(&arg, call);
            vm.remove_irqfd(arg.label)?;
        }
        function::IOEVENTFD => {
            let arg = exact(&bytes).map_err(same)?;
            describe_ioeventfd(&arg, call);
            vm.remove_ioeventfd(&arg)?;
        }
        _ => return Err(Errno::ENOENT),
    }
    Ok(0)
}

fn describe_irqfd(arg: &crate::abi::args::IrqfdArg, call: &mut Call) {
    call.set("label", arg.label);
    call.set("flags", arg.flags);
}

fn describe_ioeventfd(arg: &crate::abi::args::IoeventfdArg, call: &mut Call) {
    call.hex("addr", arg.addr);
    call.set("len", arg.len);
    call.set("flags", arg.flags);
    call.set("datamatch", arg.datamatch);
}
