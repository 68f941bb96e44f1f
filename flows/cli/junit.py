"""What a verification found, as JUnit XML for a CI step: one test case, failed if denied, in error if unanswered."""

from __future__ import annotations

import re

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from flows.cli.sarif import Checked

# what XML 1.0 cannot hold, not even escaped
FORBIDDEN = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(checked: Checked) -> bytes:
    """The document; raises nothing, whatever the message holds."""
    case = TestCase(_plain(checked.target), "vetgate.verify", checked.seconds)
    if checked.rule is not None:
        kind = Error if checked.exit_code in (2, 4) else Failure
        result = kind(_plain(str(checked.error)), checked.rule.id)
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


def _plain(text: str) -> str:
    return FORBIDDEN.sub("\ufffd", text)
