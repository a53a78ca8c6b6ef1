import json
import re

from jaxformer.drawing.page import page


def test_a_page_needs_nothing_else_and_takes_no_text_for_markup():
    evil = '</script><script>alert("x")</script><img src=http://example.org/x>'
    made = page(evil, "<p>ours</p>", "show(DATA);", {"text": evil})
    assert made.count("<script>") == made.count("</script>") == 1
    assert "<img" not in made
    (told,) = re.findall(r"const DATA = (.*);\n", made)
    assert json.loads(told) == {"text": evil}
    assert "default-src 'none'" in made
