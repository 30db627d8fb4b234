"""One day of real orders: 1 December 2010, 143 invoices, 3,108 lines (`2010-12-01.csv.gz`).

Cut from "Online Retail" by Daqing Chen (2015), UCI Machine Learning Repository, https://doi.org/10.24432/C5BW33, licensed under
CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/). Changes: only the rows of that day were kept, as they stand.

The attribution stands in this file, so that it goes wherever the rows go.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

DAY: Final = Path(__file__).with_name("2010-12-01.csv.gz")
ATTRIBUTION: Final = "Online Retail, Daqing Chen, 2015, UCI, CC BY 4.0, doi 10.24432/C5BW33"
