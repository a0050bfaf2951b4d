"""Import single modules of nodes/ without ComfyUI: those that only turn handles and reports into words."""
import sys
import types
from pathlib import Path

package = types.ModuleType("wan22_master.nodes")
package.__path__ = [str(Path(__file__).resolve().parents[2] / "nodes")]
sys.modules.setdefault("wan22_master.nodes", package)
