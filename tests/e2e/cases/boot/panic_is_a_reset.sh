# A kernel panic with panic=-1 resets the guest: gvmm ends with the code for that, the panic on the console.
guest <<'EOF'
echo c >/proc/sysrq-trigger
EOF
boot
expect_status 3
expect_console 'Kernel panic'
