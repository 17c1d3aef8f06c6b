# A guest with --memory 2G has that much.
memory=2G
guest <<'EOF'
grep 'System RAM' /proc/iomem
EOF
boot
expect_status 0
expect_console '^80000000-ffffffff : System RAM'
