# On a machine without a hypervisor gvmm names all that it tried, and the demo as the way out.
mv /dev/kvm /dev/kvm.away
gvmm --kernel "$KERNEL" --initrd "$INITRD"
mv /dev/kvm.away /dev/kvm
expect_status 2
expect_message '/dev/gunyah'
expect_message '/dev/kvm'
expect_message 'cargo xtask demo'
