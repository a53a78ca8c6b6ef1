"""Pictures and pages of what `inspect` finds: matplotlib for papers, one self-contained HTML file for looking."""
