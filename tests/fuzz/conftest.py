from fuzzing import counted


def pytest_terminal_summary(terminalreporter):
    if counted:
        terminalreporter.write_line(f"fuzzing: {sum(counted.values())} cases of {len(counted)} entries")
