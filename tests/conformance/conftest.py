"""How long the suite takes for a function, at the end of its report."""


def pytest_terminal_summary(terminalreporter):
    seconds = {
        report.nodeid: dict(report.user_properties)["conformance_seconds"]
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if "conformance_seconds" in dict(report.user_properties)
    }
    if seconds:
        functions = {nodeid.partition("[")[2].rstrip("]").partition("-")[0] for nodeid in seconds}
        total, slowest = sum(seconds.values()), max(seconds, key=seconds.get)
        name = slowest.partition("[")[2].rstrip("]")
        terminalreporter.write_line(
            f"conformance: {len(functions)} functions in {len(seconds)} cases, {total / len(functions):.2f} CPU seconds"
            f" a function, {total / len(seconds):.2f} a case; slowest {name} {seconds[slowest]:.2f}"
        )
