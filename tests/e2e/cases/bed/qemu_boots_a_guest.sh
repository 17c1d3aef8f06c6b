# The bed itself: another VMM boots the guest's kernel on /dev/kvm, and the guest runs a test to its end.
guest <<'EOF'
uname -m
EOF
qemu
expect_status 0
expect_console '^aarch64$'
expect_console '^@end 0$'
