# A guest with --memory 256M has that much, from the documented address on.
guest <<'EOF'
grep 'System RAM' /proc/iomem
EOF
boot
expect_status 0
expect_console '^80000000-8fffffff : System RAM'
