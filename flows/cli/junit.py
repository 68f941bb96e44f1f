"""What a verification found, as JUnit XML for a CI step: one test case, failed if denied, in error if unanswered."""

from __future__ import annotations

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from flows.cli.sarif import Checked
from vetgate.formats.plain_text import escaped


def junit_xml(checked: Checked) -> bytes:
    """The document; raises nothing, whatever the message holds: XML cannot hold some of what is escaped at all."""
    case = TestCase(escaped(checked.target), "vetgate.verify", checked.seconds)
    if checked.rule is not None:
        kind = Error if checked.exit_code in (2, 4) else Failure
        result = kind(checked.message, checked.rule.id)
        result.text = f"{checked.rule.text} {checked.rule.help}"
        case.result = [result]
    suite = TestSuite("vetgate")
    suite.add_property("exit_code", str(checked.exit_code))
    if checked.manifest is not None:
        suite.add_property("manifest_sha256", checked.manifest)
    suite.add_testcase(case)
    document = JUnitXml()
    document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    text: bytes = document.tostring()  # type: ignore[no-untyped-call]
    return text
